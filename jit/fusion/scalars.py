"""From graph nodes to scalar expressions: promotion, conversion, narrow dtypes.

A value of the graph has an element dtype; its expression has that dtype's compute dtype
(`jit.fusion.tile.compute_dtype`).  Eager code rounds and wraps when it stores a result; a fused
expression never stores it, so `narrow` does both explicitly and results agree to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eager.op import Promotion
from eager.scalar import Expr, vocabulary
from jit.codegen.printer import postorder
from jit.fusion.tile import Fold, compute_dtype
from jit.graph import Node, Value

k = vocabulary
FLOATING = ("float16", "bfloat16", "float32", "float64")
_WIDTH = {"int8": 8, "int16": 16, "int32": 32, "int64": 64, "uint8": 8}


def _category(dtype: str) -> int:
    return 2 if dtype in FLOATING else 0 if dtype == "bool" else 1


def _join(a: str, b: str) -> str:
    """The least dtype both fit in."""
    if a == b:
        return a
    if _category(a) != _category(b):
        return a if _category(a) > _category(b) else b
    if a in FLOATING:
        return "float64" if "float64" in (a, b) else "float32"
    if "uint8" in (a, b):
        other = b if a == "uint8" else a
        return "int16" if other == "int8" else other
    return a if _WIDTH[a] > _WIDTH[b] else b


def promote(values: Sequence[Value]) -> str:
    """The common dtype of operands: 0-dim tensors, and Python numbers below them, count only when
    their category (bool < integer < floating) is higher."""
    result: str | None = None
    groups = (
        [v.dtype for v in values if v.shape],
        [v.dtype for v in values if not v.shape and not v.weak],
        [v.dtype for v in values if v.weak],
    )
    for group in groups:
        if not group:
            continue
        joined = group[0]
        for dtype in group[1:]:
            joined = _join(joined, dtype)
        if result is None:
            result = joined
        elif _category(joined) > _category(result):
            result = _join(result, joined)
    assert result is not None
    return result


# --- conversion ---------------------------------------------------------------------------------


def constant(value: Any, dtype: str) -> Expr:
    """A number as an element of `dtype`."""
    compute = compute_dtype(dtype)
    if compute in ("float32", "float64"):
        value = float(np.float32(value)) if compute == "float32" else float(value)
    elif compute == "bool":
        value = bool(value)
    else:
        value = (int(value) + 2**63) % 2**64 - 2**63
    return narrow(k.const(value, compute), dtype)


def cast(x: Expr, dtype: str) -> Expr:
    """``k.cast``, but a constant stays one."""
    if x.fn == "const" and x.dtype != dtype:
        if dtype == "bool":
            return k.const(x.value != 0, dtype)
        if dtype == "float32":
            with np.errstate(over="ignore"):
                return k.const(float(np.float32(x.value)), dtype)
        if dtype == "float64" or np.isfinite(x.value):
            return k.const(int(x.value) if dtype in ("int32", "int64") else x.value, dtype)
    return k.cast(x, dtype)


def convert(x: Expr, dtype: str) -> Expr:
    """`x` as an element of `dtype`."""
    return narrow(cast(x, compute_dtype(dtype)), dtype)


def narrow(x: Expr, dtype: str) -> Expr:
    """`x`, of `dtype`'s compute dtype, as it reads back once stored as `dtype`."""
    if dtype in ("int8", "int16", "int32"):
        shift = k.const(64 - _WIDTH[dtype], x)
        return x if _is_narrow(x, dtype) else k.shr(k.shl(x, shift), shift)
    if dtype == "uint8":
        return x if _is_narrow(x, dtype) else k.and_(x, k.const(255, x))
    if dtype == "bfloat16":
        return _to_bfloat16(x)
    if dtype == "float16":
        return _to_float16(x)
    return x


def _is_narrow(x: Expr, dtype: str) -> bool:
    if x.fn != "const":
        return False
    low, high = (0, 255) if dtype == "uint8" else (-(1 << _WIDTH[dtype] - 1),
                                                   (1 << _WIDTH[dtype] - 1) - 1)  # fmt: skip
    return bool(low <= x.value <= high)


def _to_bfloat16(x: Expr) -> Expr:
    """Rounds a float32 to 8 significant bits, to nearest even; NaN passes."""
    bits = k.bits(x)
    odd = k.shr(bits, k.const(16, bits)) & k.const(1, bits)
    rounded = (bits + (odd + 0x7FFF)) & k.const(-0x10000, bits)
    return k.where(k.isnan(x), x, k.bits(rounded))


def _to_float16(x: Expr) -> Expr:
    """Rounds a float32 to float16's precision and range, to nearest even; NaN passes."""
    bits = k.bits(x)
    odd = k.shr(bits, k.const(13, bits)) & k.const(1, bits)
    normal = k.bits((bits + (odd + 0xFFF)) & k.const(-0x2000, bits))
    magnitude = k.abs(x)
    # Below 2^-14 the spacing is 2^-24, which is that of float32 numbers in [0.5, 1).
    small = (magnitude + 0.5) - 0.5
    sign = bits & k.const(-0x80000000, bits)
    tiny = k.bits(k.bits(small) | sign)
    infinite = k.bits(sign | k.const(0x7F800000, bits))
    value = k.where(magnitude < 2.0**-14, tiny, k.where(magnitude >= 65520.0, infinite, normal))
    return k.where(k.isnan(x), x, value)


# --- nodes --------------------------------------------------------------------------------------


def evaluate(node: Node, args: Sequence[Expr], index: Expr) -> list[Expr]:
    """The outputs of an elementwise node at one point.

    Args:
        node: its op has a body.
        args: the inputs there, each in the compute dtype of its own element dtype.
        index: the flat output index, int64.
    """
    op, promotion = node.op, node.op.dtype
    common = _operand_dtype(node)
    if promotion in (Promotion.LOGICAL, Promotion.INTEGRAL) and common == "bool":
        compute = "bool"
    else:
        compute = "int64" if common == "bool" else compute_dtype(common)
    operands = []
    for i, x in enumerate(args):
        if op.indexed:
            operands.append(cast(x, "int64"))
        elif promotion is Promotion.SELECT and i == 0:
            operands.append(cast(x, "bool"))
        else:
            operands.append(cast(convert(x, common), compute))
    results = op.evaluate(operands, compute, node.attrs, index)
    return [convert(_fold_casts(r), v.dtype) for r, v in zip(results, node.outputs, strict=True)]


def _fold_casts(e: Expr) -> Expr:
    """`e` with conversions of constants done."""
    done: dict[Expr, Expr] = {}
    for node in postorder([e]):
        args = tuple(done[a] for a in node.args)
        if node.fn == "cast":
            done[node] = cast(args[0], node.dtype)
        else:
            done[node] = node if args == node.args else Expr(node.fn, args, node.dtype, node.value)
    return done[e]


def _operand_dtype(node: Node) -> str:
    """The dtype inputs are converted to."""
    promotion, result = node.op.dtype, node.outputs[0].dtype
    if promotion is Promotion.LOGICAL:
        return "bool"
    if promotion in (Promotion.COMPARE, Promotion.BOOL, Promotion.INDEX):
        return promote(node.inputs)
    return result


def fold_of(node: Node, x: Expr) -> Fold:
    """The fold of a reduction node over values `x`, which have the compute dtype of its input."""
    reduction = node.op.reduce
    assert reduction is not None
    source, target = node.inputs[0].dtype, node.output.dtype
    promotion = node.op.dtype
    common = source if promotion in (Promotion.BOOL, Promotion.INDEX) else target
    dtype = "int64" if common == "bool" else compute_dtype(common)
    mapped = cast(reduction.map(k, cast(convert(x, common), dtype)), dtype)
    combined = k.cast(reduction.combine(k, k.arg("a", dtype), k.arg("b", dtype)), dtype)
    identity = reduction.identity
    if isinstance(identity, str):
        sign = 1 if identity == "highest" else -1
        if dtype in ("float32", "float64"):
            return Fold(mapped, combined, sign * float("inf"))
        return Fold(mapped, combined, 2**63 - 1 if sign > 0 else -(2**63))
    return Fold(mapped, combined, identity)


_COSTS = {
    "exp": 12, "expm1": 14, "log": 16, "log1p": 24, "sin": 60, "cos": 60, "tanh": 16, "erf": 25,
    "pow": 60, "div": 4, "sqrt": 4, "rsqrt": 8, "floordiv": 20, "mod": 20,
}  # fmt: skip


def cost(fn: str) -> int:
    """What one call of a function costs, in additions."""
    return _COSTS.get(fn, 1)
