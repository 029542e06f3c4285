"""Vectors for Numba: the scalar vocabulary and memory accesses on SIMD values, as LLVM IR.

A compiled body works on `Vector` values of a fixed number of lanes, one iteration point per lane;
the last iteration of a loop runs under a mask.  Every function here is a Numba ``@intrinsic``
that emits vector instructions directly, so nothing hangs on the loop vectoriser.  Functions
without an instruction (exp, tanh, ...) are emitted from their definition in `eager.scalar_math`,
which makes the results those of the eager kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from eager import scalar_math
from eager.scalar import FUNCTIONS, Expr, vocabulary
from jit.codegen import target
from jit.codegen.numba import UNARY
from jit.codegen.printer import postorder

I8, I32, I64 = (ir.IntType(n) for n in (8, 32, 64))
LLVM = {
    "float32": ir.FloatType(), "float64": ir.DoubleType(), "int32": I32, "int64": I64,
    "bool": ir.IntType(1),
}  # fmt: skip
SUFFIX = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64", "bool": "i1"}


class Vector(types.Type):
    """The Numba type of `lanes` values of a compute dtype."""

    def __init__(self, dtype: str, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(f"vector({dtype}, {lanes})")

    @property
    def llvm(self) -> Any:
        """The LLVM type."""
        return ir.VectorType(LLVM[self.dtype], self.lanes)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A vector is itself in registers and memory."""

    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)  # type: ignore[no-untyped-call]


# --- the vocabulary -----------------------------------------------------------------------------


def splat(b: Any, value: Any, lanes: int) -> Any:
    """A vector with `value` in every lane."""
    if isinstance(value, ir.Constant):
        return ir.Constant(ir.VectorType(value.type, lanes), [value.constant] * lanes)
    kind = ir.VectorType(value.type, lanes)
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def constant(dtype: str, value: Any, lanes: int) -> Any:
    """A vector constant."""
    return ir.Constant(ir.VectorType(LLVM[dtype], lanes), [value] * lanes)


def call(b: Any, name: str, result: Any, args: Sequence[Any]) -> Any:
    """Calls a function by name, declaring it."""
    kind = ir.FunctionType(result, [a.type for a in args])
    declared = cgutils.get_or_insert_function(b.module, kind, name)  # type: ignore[no-untyped-call]
    return b.call(declared, args)


def _math(name: str) -> Callable[..., Any]:
    def emit(b: Any, dtype: str, *xs: Any) -> Any:
        suffix = f"v{xs[0].type.count}{SUFFIX[dtype]}"
        return call(b, f"llvm.{name}.{suffix}", xs[0].type, xs)

    return emit


def _is_float(dtype: str) -> bool:
    return dtype in ("float32", "float64")


def _either(on_float: str, on_int: str) -> Callable[..., Any]:
    def emit(b: Any, dtype: str, x: Any, y: Any) -> Any:
        return getattr(b, on_float if _is_float(dtype) else on_int)(x, y)

    return emit


def _compare(sign: str) -> Callable[..., Any]:
    def emit(b: Any, dtype: str, x: Any, y: Any) -> Any:
        if dtype == "bool":
            return b.icmp_unsigned(sign, x, y)
        if not _is_float(dtype):
            return b.icmp_signed(sign, x, y)
        # != is true of NaN, every other comparison false
        return (b.fcmp_unordered if sign == "!=" else b.fcmp_ordered)(sign, x, y)

    return emit


def _extremum(sign: str) -> Callable[..., Any]:
    compare = _compare(sign)
    return lambda b, dtype, x, y: b.select(compare(b, dtype, x, y), x, y)


def _neg(b: Any, dtype: str, x: Any) -> Any:
    return b.fneg(x) if _is_float(dtype) else b.neg(x)


def _abs(b: Any, dtype: str, x: Any) -> Any:
    if _is_float(dtype):
        return _math("fabs")(b, dtype, x)
    return b.select(b.icmp_signed("<", x, ir.Constant(x.type, None)), b.neg(x), x)


def _not(b: Any, dtype: str, x: Any) -> Any:
    ones = 1 if dtype == "bool" else -1
    return b.xor(x, constant(dtype, ones, x.type.count))


def _safe_divisor(b: Any, dtype: str, x: Any, y: Any) -> tuple[Any, Any]:
    """(a divisor that never traps, where `y` is 0): a hardware division traps on 0 and on the
    least integer over -1, for which the divisor 1 gives the quotient that wraps around."""
    n = y.type.count
    least = constant(dtype, -(1 << (31 if dtype == "int32" else 63)), n)
    overflow = b.and_(b.icmp_signed("==", x, least), b.icmp_signed("==", y, constant(dtype, -1, n)))
    zero = b.icmp_signed("==", y, constant(dtype, 0, n))
    return b.select(b.or_(zero, overflow), constant(dtype, 1, n), y), zero


def _floor_fix(b: Any, dtype: str, remainder: Any, y: Any) -> Any:
    """Where truncating division must be moved down to floor."""
    zero = constant(dtype, 0, y.type.count)
    signs = b.icmp_signed("<", b.xor(remainder, y), zero)
    return b.and_(signs, b.icmp_signed("!=", remainder, zero))


def _int_div(b: Any, dtype: str, x: Any, y: Any) -> Any:
    divisor, zero = _safe_divisor(b, dtype, x, y)
    return b.select(zero, ir.Constant(x.type, None), b.sdiv(x, divisor))


def _int_floordiv(b: Any, dtype: str, x: Any, y: Any) -> Any:
    divisor, zero = _safe_divisor(b, dtype, x, y)
    q = b.sdiv(x, divisor)
    down = _floor_fix(b, dtype, b.sub(x, b.mul(q, divisor)), divisor)
    q = b.select(down, b.sub(q, constant(dtype, 1, x.type.count)), q)
    return b.select(zero, ir.Constant(x.type, None), q)


def _int_mod(b: Any, dtype: str, x: Any, y: Any) -> Any:
    divisor, _ = _safe_divisor(b, dtype, x, y)
    r = b.srem(x, divisor)
    return b.select(_floor_fix(b, dtype, r, divisor), b.add(r, divisor), r)


def _int_pow(b: Any, dtype: str, x: Any, y: Any) -> Any:
    """By squaring; a negative exponent gives 0, but for the bases 1 and -1."""
    lanes = x.type.count
    zero, one = constant(dtype, 0, lanes), constant(dtype, 1, lanes)
    minus_one = constant(dtype, -1, lanes)
    state = [b.alloca(x.type) for _ in range(3)]
    for place, first in zip(state, (one, x, y), strict=True):
        b.store(first, place)
    with cgutils.for_range(b, I64(63)):
        value, power, left = (b.load(p) for p in state)
        odd = b.icmp_signed("!=", b.and_(left, one), zero)
        b.store(b.select(odd, b.mul(value, power), value), state[0])
        b.store(b.mul(power, power), state[1])
        b.store(b.ashr(left, one), state[2])
    is_odd = b.icmp_signed("!=", b.and_(y, one), zero)
    sign = b.select(is_odd, minus_one, one)
    minus = b.select(b.icmp_signed("==", x, minus_one), sign, zero)
    inverse = b.select(b.icmp_signed("==", x, one), one, minus)
    return b.select(b.icmp_signed("<", y, zero), inverse, b.load(state[0]))


def _div(b: Any, dtype: str, x: Any, y: Any) -> Any:
    return b.fdiv(x, y) if _is_float(dtype) else _int_div(b, dtype, x, y)


def _fma(b: Any, dtype: str, x: Any, y: Any, z: Any) -> Any:
    """Rounded once where the machine can; elsewhere twice, as the eager kernels do."""
    if not _is_float(dtype):
        return b.add(b.mul(x, y), z)
    if not target.has("fma"):
        return b.fadd(b.fmul(x, y), z)
    return _math("fma")(b, dtype, x, y, z)


def _unless_int(name: str) -> Callable[..., Any]:
    """A rounding of floats; integers are themselves."""
    return lambda b, dtype, x: _math(name)(b, dtype, x) if _is_float(dtype) else x


def _libm(name: str) -> Callable[..., Any]:
    """A call of the C library for each lane."""

    def emit(b: Any, dtype: str, *xs: Any) -> Any:
        element, result = LLVM[dtype], ir.Constant(xs[0].type, ir.Undefined)
        symbol = name + ("f" if dtype == "float32" else "")
        for lane in range(xs[0].type.count):
            args = [b.extract_element(x, I32(lane)) for x in xs]
            result = b.insert_element(result, call(b, symbol, element, args), I32(lane))
        return result

    return emit


def _copysign(b: Any, dtype: str, magnitude: Any, sign: Any) -> Any:
    return _math("copysign")(b, dtype, magnitude, sign)


def _float_mod(b: Any, dtype: str, x: Any, y: Any) -> Any:
    """The remainder with the divisor's sign."""
    r, zero = _libm("fmod")(b, dtype, x, y), ir.Constant(x.type, None)
    signs = b.xor(b.fcmp_ordered("<", r, zero), b.fcmp_ordered("<", y, zero))
    moved = b.select(signs, b.fadd(r, y), r)
    return b.select(b.fcmp_unordered("!=", r, zero), moved, _copysign(b, dtype, zero, y))


def _float_floordiv(b: Any, dtype: str, x: Any, y: Any) -> Any:
    """Floor division that agrees with `_float_mod`."""
    n, zero = x.type.count, ir.Constant(x.type, None)
    r, ratio = _libm("fmod")(b, dtype, x, y), b.fdiv(x, y)
    q = b.fdiv(b.fsub(x, r), y)
    signs = b.xor(b.fcmp_ordered("<", r, zero), b.fcmp_ordered("<", y, zero))
    down = b.and_(b.fcmp_unordered("!=", r, zero), signs)
    q = b.select(down, b.fsub(q, constant(dtype, 1.0, n)), q)
    whole = _math("floor")(b, dtype, q)
    late = b.fcmp_ordered(">", b.fsub(q, whole), constant(dtype, 0.5, n))
    nearest = b.select(late, b.fadd(whole, constant(dtype, 1.0, n)), whole)
    is_zero = b.fcmp_ordered("==", q, zero)
    value = b.select(is_zero, _copysign(b, dtype, zero, ratio), nearest)
    return b.select(b.fcmp_ordered("==", y, zero), ratio, value)


def _isnan(b: Any, dtype: str, x: Any) -> Any:
    if not _is_float(dtype):
        return constant("bool", 0, x.type.count)
    return b.fcmp_unordered("uno", x, x)


def _cast(b: Any, source: str, target: str, x: Any) -> Any:
    kind = ir.VectorType(LLVM[target], x.type.count)
    if target == "bool":
        zero = ir.Constant(x.type, None)
        if _is_float(source):
            return b.fcmp_unordered("!=", x, zero)
        return b.icmp_unsigned("!=", x, zero)
    if source == "bool":
        return b.uitofp(x, kind) if _is_float(target) else b.zext(x, kind)
    if _is_float(source) and _is_float(target):
        return b.fpext(x, kind) if target == "float64" else b.fptrunc(x, kind)
    if _is_float(source):
        return b.fptosi(x, kind)
    if _is_float(target):
        return b.sitofp(x, kind)
    return b.sext(x, kind) if target == "int64" else b.trunc(x, kind)


# Functions with an instruction or a call; the others are expanded by eager.scalar_math.  What
# each means on integers and at NaN is said in jit.codegen.c.
_ANY: dict[str, Callable[..., Any]] = {
    "add": _either("fadd", "add"), "sub": _either("fsub", "sub"), "mul": _either("fmul", "mul"),
    "div": _div, "neg": _neg, "abs": _abs, "min": _extremum("<"), "max": _extremum(">"),
    "lt": _compare("<"), "le": _compare("<="), "gt": _compare(">"), "ge": _compare(">="),
    "eq": _compare("=="), "ne": _compare("!="), "not_": _not, "isnan": _isnan, "fma": _fma,
    "and_": lambda b, _, x, y: b.and_(x, y), "or_": lambda b, _, x, y: b.or_(x, y),
    "xor": lambda b, _, x, y: b.xor(x, y), "shl": lambda b, _, x, y: b.shl(x, y),
    "shr": lambda b, _, x, y: b.ashr(x, y), "where": lambda b, _, c, x, y: b.select(c, x, y),
    "floor": _unless_int("floor"), "ceil": _unless_int("ceil"), "trunc": _unless_int("trunc"),
    "round": _unless_int("roundeven"),
}  # fmt: skip
_FLOAT: dict[str, Callable[..., Any]] = {
    "sqrt": _math("sqrt"), "floordiv": _float_floordiv, "mod": _float_mod, "pow": _libm("pow"),
}  # fmt: skip
_DOUBLE = {f: _libm(f) for f in ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf")}
_INT: dict[str, Callable[..., Any]] = {
    "floordiv": _int_floordiv, "mod": _int_mod, "pow": _int_pow,
}  # fmt: skip


def instruction(fn: str, dtype: str) -> Callable[..., Any] | None:
    """What emits `fn` on operands of `dtype`; None if it must be expanded."""
    if dtype == "float64" and fn in _DOUBLE:
        return _DOUBLE[fn]
    return _ANY.get(fn) or (_FLOAT if _is_float(dtype) else _INT).get(fn)


def operand_dtype(fn: str, dtypes: Sequence[str]) -> str:
    """The dtype a function is looked up by."""
    return dtypes[1] if fn == "where" else dtypes[0]


def emit(b: Any, e: Expr, values: dict[Expr, Any], lanes: int) -> Any:
    """The vector value of `e`, given those of its arguments in `values` (which is extended)."""
    for node in postorder([e]):
        if node not in values:
            values[node] = _emit_node(b, node, values, lanes)
    return values[e]


def _emit_node(b: Any, e: Expr, values: dict[Expr, Any], lanes: int) -> Any:
    if e.fn == "const":
        return constant(e.dtype, e.value, lanes)
    args = [values[a] for a in e.args]
    if e.fn == "cast":
        return _cast(b, e.args[0].dtype, e.dtype, *args)
    if e.fn == "bits":
        return b.bitcast(args[0], ir.VectorType(LLVM[e.dtype], lanes))
    dtype = operand_dtype(e.fn, [a.dtype for a in e.args])
    direct = instruction(e.fn, dtype)
    if direct is not None:
        return direct(b, dtype, *args)
    definition = scalar_math.EXPANSIONS.get((e.fn, dtype))
    if definition is None:
        raise NotImplementedError(f"{e.fn} of {dtype}: eager.scalar_math does not define it")
    return emit(b, definition(vocabulary, *e.args), values, lanes)


def _vocabulary_function(fn: str, arity: int) -> Any:
    """An intrinsic that applies a function of the vocabulary to vectors."""

    def typing(_context: Any, *args: Any) -> Any:
        names = [vocabulary.arg(f"a{i}", v.dtype) for i, v in enumerate(args)]
        e = vocabulary.call(fn, *names)

        def codegen(_c: Any, b: Any, _sig: Any, values: Sequence[Any]) -> Any:
            return emit(b, e, dict(zip(names, values, strict=True)), args[0].lanes)

        return Vector(e.dtype, args[0].lanes)(*args), codegen

    if arity == 1:
        return intrinsic(lambda context, x: typing(context, x))
    if arity == 2:
        return intrinsic(lambda context, x, y: typing(context, x, y))
    return intrinsic(lambda context, x, y, z: typing(context, x, y, z))


def _cast_function(target: str) -> Any:
    @intrinsic
    def cast(_context: Any, x: Any) -> Any:
        def codegen(_c: Any, b: Any, _sig: Any, args: Sequence[Any]) -> Any:
            return _cast(b, x.dtype, target, args[0])

        return Vector(target, x.lanes)(x), codegen

    return cast


def _constant_function(dtype: str, lanes: int) -> Any:
    """``float32(0.5)``: a vector constant from a Python literal."""
    source = types.float64 if _is_float(dtype) else types.int64
    kind = Vector(dtype, lanes)

    @intrinsic
    def const(_context: Any, _x: Any) -> Any:
        def codegen(_c: Any, b: Any, _sig: Any, args: Sequence[Any]) -> Any:
            value = args[0]
            if dtype == "float32":
                value = b.fptrunc(value, LLVM[dtype])
            elif dtype in ("int32", "bool"):
                value = b.trunc(value, LLVM[dtype])
            return splat(b, value, lanes)

        return kind(source), codegen

    return const


def _arity(fn: str) -> int:
    return 1 if fn in UNARY else 3 if fn in ("where", "fma") else 2


def scalar_names(lanes: int) -> dict[str, Any]:
    """The vocabulary, casts and constants, as generated source names them."""
    names = {f: _vocabulary_function(f, _arity(f)) for f in FUNCTIONS if f != "cast"}
    names |= {f"to_{d}": _cast_function(d) for d in LLVM}
    return names | {d: _constant_function(d, lanes) for d in LLVM}
