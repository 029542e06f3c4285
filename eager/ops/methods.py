"""Attaches methods to Tensor: the public functions, and their in-place forms.

Methods that are called most are native and not replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eager import _C
from eager.errors import DTypeError, helpful
from eager.op import registry
from eager.ops import functions as f
from eager.ops.functions import create, joining, pieces, random

# Functions whose first argument is the tensor.
_METHODS = [
    "abs", "absolute", "add", "addcdiv", "addcmul", "addmm", "adjoint", "all", "allclose", "amax",
    "amin", "any", "argmax", "argmin", "argwhere", "baddbmm", "bernoulli", "bitwise_and",
    "bitwise_left_shift", "bitwise_not", "bitwise_or", "bitwise_right_shift", "bitwise_xor",
    "bmm", "broadcast_to", "ceil", "chunk", "clamp", "clamp_max", "clamp_min", "clip", "cos",
    "count_nonzero", "cumsum", "diag", "diagonal", "diff", "div", "divide", "dot", "eq", "equal",
    "erf", "exp", "exp2", "expm1", "fix", "flatten", "flip", "floor", "floor_divide", "fmod",
    "gather", "ge", "ger", "greater", "greater_equal", "gt", "index_add", "index_copy",
    "index_select", "isclose", "isfinite", "isinf", "isnan", "le", "lerp", "less", "less_equal",
    "log", "log10", "log1p", "log2", "log_softmax", "logaddexp", "logical_and", "logical_not",
    "logical_or", "logical_xor", "logsumexp", "lt", "masked_fill", "masked_select", "max",
    "maximum", "mean", "min", "minimum", "mm", "movedim", "moveaxis", "mul", "multiply", "mv",
    "narrow", "ne", "neg", "negative", "nonzero", "norm", "not_equal", "outer", "pow", "prod",
    "ravel", "reciprocal", "relu", "remainder", "repeat_interleave", "roll", "round", "rsqrt",
    "rsub", "scatter_add", "select", "sigmoid", "sign", "sin", "softmax", "split", "sqrt",
    "square", "squeeze", "std", "sub", "subtract", "sum", "swapaxes", "swapdims", "take",
    "take_along_dim", "tan", "tanh", "tile", "tril", "triu", "true_divide", "trunc", "unbind",
    "unflatten", "unsqueeze", "var",
    # less common ones
    "acos", "acosh", "addbmm", "addmv", "addr", "aminmax", "arccos", "arccosh", "arcsin",
    "arcsinh", "arctan", "arctan2", "arctanh", "argsort", "asin", "asinh", "atan", "atan2",
    "atanh", "bincount", "copysign", "corrcoef", "cosh", "cov", "cross", "cummax", "cummin",
    "cumprod", "deg2rad", "diag_embed", "diagflat", "diagonal_scatter", "dist", "dsplit",
    "fill", "fliplr", "flipud", "float_power", "fmax", "fmin", "frac", "heaviside", "histc",
    "hsplit", "hypot", "index_fill", "inner", "isin", "isneginf", "isposinf", "isreal",
    "kron", "kthvalue", "ldexp", "logaddexp2", "logcumsumexp", "logit", "masked_scatter",
    "matrix_power", "median", "mode", "msort", "nan_to_num", "nanmean", "nanmedian",
    "nanquantile", "nansum", "put", "quantile", "rad2deg", "rot90", "scatter", "select_scatter",
    "sgn", "signbit", "sinc", "sinh", "slice_scatter", "sort", "split_with_sizes", "tensor_split",
    "topk", "trace", "unique", "unique_consecutive", "unsafe_chunk", "unsafe_split", "vdot",
    "vsplit", "xlogy",
]  # fmt: skip

# Elementwise ops whose in-place form is the op itself, written to its first input.
_IN_PLACE_OPS = [
    "abs", "bitwise_and", "bitwise_left_shift", "bitwise_or", "bitwise_right_shift",
    "bitwise_xor", "ceil", "cos", "erf", "exp", "expm1", "floor", "floor_divide", "fmod", "log",
    "log1p", "logical_and", "logical_not", "logical_or", "logical_xor", "mul", "neg",
    "reciprocal", "relu", "remainder", "rsqrt", "sigmoid", "sign", "sin", "sqrt", "square",
    "tanh", "trunc", "eq", "ne", "lt", "le", "gt", "ge", "acos", "acosh", "asin", "asinh", "atan",
    "atan2", "atanh", "cosh", "sinh",
]  # fmt: skip

# Functions whose in-place form copies the result.
_IN_PLACE_FUNCTIONS = [
    "addcdiv", "addcmul", "addmm", "baddbmm", "bitwise_not", "clamp", "clamp_max", "clamp_min",
    "clip", "cumsum", "div", "divide", "exp2", "index_add", "index_copy", "lerp", "log10", "log2",
    "masked_fill", "multiply", "negative", "pow", "round", "scatter_add", "subtract", "tan",
    "tril", "triu", "true_divide", "addbmm", "addmv", "addr", "copysign", "cumprod", "deg2rad",
    "float_power", "frac", "heaviside", "hypot", "index_fill", "ldexp", "logit", "masked_scatter",
    "nan_to_num", "put", "rad2deg", "scatter", "sgn", "sinc", "xlogy",
]  # fmt: skip


def _in_place_op(name: str) -> Callable[..., Any]:
    op_id = registry[name].id
    dispatch = _C.dispatch

    def method(self: _C.Tensor, *args: Any) -> _C.Tensor:
        dispatch(op_id, (self, *args), {}, self)
        return self

    return method


def _in_place_function(name: str) -> Callable[..., Any]:
    fn = getattr(f, name)

    def method(self: _C.Tensor, *args: Any, **kwargs: Any) -> _C.Tensor:
        # What the tape saves of the input must not be overwritten by the result.
        result = fn(self.clone() if self.requires_grad else self, *args, **kwargs)
        if result.dtype.is_floating_point and not self.dtype.is_floating_point:
            raise helpful(
                DTypeError, f"{name}_", "the result's dtype cannot be stored in place",
                f"a result that casts to {self.dtype}", str(result.dtype),
                "the form that is not in place",
            )  # fmt: skip
        return self.copy_(result)

    return method


def _scaled(name: str) -> Callable[..., Any]:
    """add_ and sub_, which take alpha."""
    op_id = registry[name].id
    dispatch = _C.dispatch

    def method(self: _C.Tensor, other: Any, *, alpha: float = 1) -> _C.Tensor:
        dispatch(op_id, (self, other if alpha == 1 else f.mul(other, alpha)), {}, self)
        return self

    return method


def _attach(name: str, fn: Callable[..., Any] | property) -> None:
    if not hasattr(_C.Tensor, name):
        setattr(_C.Tensor, name, fn)


def _method(name: str) -> Callable[..., Any]:
    fn = getattr(f, name)

    # A callable of the extension is no descriptor: as a class attribute it would not bind.
    def method(self: _C.Tensor, *args: Any, **kwargs: Any) -> Any:
        return fn(self, *args, **kwargs)

    return fn if hasattr(type(fn), "__get__") else method


def _where(self: _C.Tensor, condition: _C.Tensor, other: Any) -> _C.Tensor:
    """The elements of `self` where `condition` holds, else those of `other`."""
    result: _C.Tensor = f.where(condition, self, other)
    return result


def _adjoint(self: _C.Tensor) -> _C.Tensor:
    """The last two dimensions swapped: real numbers are their own complex conjugates."""
    return f.adjoint(self)


def attach() -> None:
    """Adds the methods to the type."""
    for name in ("H", "mH"):
        _attach(name, property(_adjoint))
    for name in _METHODS:
        _attach(name, _method(name))
    for name in _IN_PLACE_OPS:
        _attach(f"{name}_", _in_place_op(name))
    for name in _IN_PLACE_FUNCTIONS:
        _attach(f"{name}_", _in_place_function(name))
    _attach("add_", _scaled("add"))
    _attach("sub_", _scaled("sub"))
    _attach("where", _where)
    for fn in (
        create.new_zeros, create.new_ones, create.new_full, create.new_empty, create.new_tensor,
        joining.reshape_as, joining.sum_to_size, joining.unfold, joining.view_as,
        random.uniform_, random.normal_, random.bernoulli_, random.random_, pieces.repeat,
    ):  # fmt: skip
        _attach(fn.__name__, fn)


attach()
