"""The public functions, PyTorch-shaped; `eager` re-exports them."""

from __future__ import annotations

from eager.ops.arithmetic import (
    floor_divide,
    fmod,
    maximum,
    minimum,
    mul,
    remainder,
)  # fmt: skip
from eager.ops.comparison import (
    bitwise_and,
    bitwise_left_shift,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    eq,
    ge,
    gt,
    isfinite,
    isinf,
    isnan,
    le,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    lt,
    ne,
)  # fmt: skip
from eager.ops.functions import (
    arithmetic,
    compare,
    create,
    elementwise,
    index,
    joining,
    linalg,
    order,
    pieces,
    products,
    random,
    reduce,
    scan,
    scatters,
    sets,
    shape,
)
from eager.ops.functions.arithmetic import *
from eager.ops.functions.compare import *
from eager.ops.functions.create import *
from eager.ops.functions.elementwise import *
from eager.ops.functions.index import *
from eager.ops.functions.joining import *
from eager.ops.functions.linalg import *
from eager.ops.functions.order import *
from eager.ops.functions.pieces import *
from eager.ops.functions.products import *
from eager.ops.functions.random import *
from eager.ops.functions.reduce import *
from eager.ops.functions.scan import *
from eager.ops.functions.scatters import *
from eager.ops.functions.sets import *
from eager.ops.functions.shape import *
from eager.ops.shape import detach
from eager.ops.trigonometry import (
    acos,
    acosh,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    cosh,
    signbit,
    sinh,
)  # fmt: skip
from eager.ops.unary import (
    abs,
    ceil,
    cos,
    erf,
    exp,
    expm1,
    floor,
    gelu,
    gelu_tanh,
    log,
    log1p,
    neg,
    reciprocal,
    relu,
    rsqrt,
    sigmoid,
    sign,
    silu,
    sin,
    sqrt,
    square,
    tanh,
    trunc,
)  # fmt: skip
from eager.random import (
    Generator,
    default_generator,
    get_rng_state,
    initial_seed,
    manual_seed,
    seed,
    set_rng_state,
)

# Other names of the same functions.
absolute, negative, fix = abs, neg, trunc
multiply, divide, true_divide, subtract = mul, div, div, sub
clip, greater, less = clamp, gt, lt
greater_equal, less_equal, not_equal = ge, le, ne
arccos, arccosh, arcsin, arcsinh = acos, acosh, asin, asinh
arctan, arctan2, arctanh = atan, atan2, atanh
row_stack = vstack
globals().update(joining.copies)

__all__ = [
    "Generator", "abs", "absolute", "bitwise_and", "bitwise_left_shift", "bitwise_or",
    "bitwise_right_shift", "bitwise_xor", "ceil", "clip", "cos", "default_generator",
    "detach", "divide", "eq", "erf", "exp", "expm1", "fix", "floor", "floor_divide", "fmod", "ge",
    "gelu", "gelu_tanh", "get_rng_state", "greater", "greater_equal", "gt", "initial_seed",
    "isfinite", "isinf", "isnan", "le", "less", "less_equal", "log", "log1p", "logical_and",
    "logical_not", "logical_or", "logical_xor", "lt", "manual_seed", "maximum", "minimum", "mul",
    "multiply", "ne", "neg", "negative", "not_equal", "reciprocal", "relu", "remainder", "rsqrt",
    "seed", "set_rng_state", "sigmoid", "sign", "silu", "sin", "sqrt", "square", "subtract",
    "tanh", "true_divide", "trunc",
]  # fmt: skip
__all__ += [
    "acos", "acosh", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh",
    "asin", "asinh", "atan", "atan2", "atanh", "cosh", "row_stack", "signbit", "sinh",
]  # fmt: skip
__all__ += list(joining.copies)
__all__ += arithmetic.__all__
__all__ += compare.__all__
__all__ += create.__all__
__all__ += elementwise.__all__
__all__ += index.__all__
__all__ += joining.__all__
__all__ += linalg.__all__
__all__ += order.__all__
__all__ += pieces.__all__
__all__ += products.__all__
__all__ += random.__all__
__all__ += reduce.__all__
__all__ += scan.__all__
__all__ += scatters.__all__
__all__ += sets.__all__
__all__ += shape.__all__
