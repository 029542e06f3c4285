"""Comparison, logic, bits, and selection."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

from eager.op import Promotion, elementwise
from eager.samples import booleans, both, calls, integer_pairs, integers, real_pairs, reals
from eager.scalar import FLOATS, Expr, Vocabulary

_pairs = both(integer_pairs(-2, 2), real_pairs(), integer_pairs(0, 1, dtypes=("bool", "bool")))


def _compare(name: str, onnx: str | None, ref: Any) -> Any:
    return elementwise(
        name,
        lambda k, input, other: k.call(name, input, other),
        vjp=None, dtype=Promotion.COMPARE, onnx=onnx, ref=ref, samples=_pairs,
    )  # fmt: skip


eq = _compare("eq", "Equal", np.equal)
ne = _compare("ne", None, np.not_equal)
lt = _compare("lt", "Less", np.less)
le = _compare("le", "LessOrEqual", np.less_equal)
gt = _compare("gt", "Greater", np.greater)
ge = _compare("ge", "GreaterOrEqual", np.greater_equal)

_special = calls(lambda rng: [(np.array([1.0, np.nan, -np.inf, np.inf, -0.0]),)])

isnan = elementwise(
    "isnan",
    lambda k, input: k.isnan(input),
    vjp=None, dtype=Promotion.COMPARE, onnx="IsNaN", ref=np.isnan,
    samples=_special,
)  # fmt: skip


def _isinf(k: Vocabulary, x: Expr) -> Expr:
    return k.eq(k.abs(x), inf) if x.dtype in FLOATS else k.isnan(x)


def _isfinite(k: Vocabulary, x: Expr) -> Expr:
    return k.abs(x) < inf if x.dtype in FLOATS else ~k.isnan(x)


isinf = elementwise(
    "isinf",
    lambda k, input: _isinf(k, input),
    vjp=None, dtype=Promotion.COMPARE, onnx="IsInf", ref=np.isinf,
    samples=both(_special, integers()),
)  # fmt: skip

isfinite = elementwise(
    "isfinite",
    lambda k, input: _isfinite(k, input),
    vjp=None, dtype=Promotion.COMPARE, onnx=None, ref=np.isfinite,
    samples=both(_special, integers(), reals()),
)  # fmt: skip


def _logical(name: str, onnx: str, body: Any, ref: Any) -> Any:
    return elementwise(
        name, body, vjp=None, dtype=Promotion.LOGICAL, onnx=onnx, ref=ref, samples=_pairs
    )


logical_and = _logical("logical_and", "And", lambda k, input, other: input & other, np.logical_and)
logical_or = _logical("logical_or", "Or", lambda k, input, other: input | other, np.logical_or)
logical_xor = _logical("logical_xor", "Xor", lambda k, input, other: input ^ other, np.logical_xor)
logical_not = elementwise(
    "logical_not",
    lambda k, input: ~input,
    vjp=None, dtype=Promotion.LOGICAL, onnx="Not", ref=np.logical_not,
    samples=both(booleans, integers(-1, 1), reals()),
)  # fmt: skip


def _bitwise(name: str, onnx: str | None, body: Any, ref: Any, samples: Any) -> Any:
    return elementwise(
        name, body, vjp=None, dtype=Promotion.INTEGRAL, onnx=onnx, ref=ref, samples=samples
    )


_bits = both(integer_pairs(), integer_pairs(0, 1, dtypes=("bool", "bool")))
bitwise_and = _bitwise(
    "bitwise_and", "BitwiseAnd", lambda k, input, other: input & other, np.bitwise_and, _bits
)
bitwise_or = _bitwise(
    "bitwise_or", "BitwiseOr", lambda k, input, other: input | other, np.bitwise_or, _bits
)
bitwise_xor = _bitwise(
    "bitwise_xor", "BitwiseXor", lambda k, input, other: input ^ other, np.bitwise_xor, _bits
)
# For bool tensors this is logical_not, which the public call and the operator choose.
bitwise_invert = _bitwise(
    "bitwise_not", "BitwiseNot", lambda k, input: ~input, np.bitwise_not, both(integers())
)
# Shift counts beyond the width are undefined in C; here they shift everything out.
bitwise_left_shift = _bitwise(
    "bitwise_left_shift", None,
    lambda k, input, other: k.where((other >= 0) & (other < 64), input << (other & 63), 0),
    np.left_shift, integer_pairs(other=(0, 5)),
)  # fmt: skip
bitwise_right_shift = _bitwise(
    "bitwise_right_shift", None,
    lambda k, input, other: input >> k.where((other >= 0) & (other < 64), other, 63),
    np.right_shift, integer_pairs(other=(0, 5)),
)  # fmt: skip

where: Any = elementwise(
    "where",
    lambda k, condition, input, other: k.where(condition, input, other),
    vjp=lambda g, _y, c, _a, _b: (None, where(c, g, 0.0), where(c, 0.0, g)),
    dtype=Promotion.SELECT, onnx="Where", ref=np.where,
    samples=calls(lambda rng: [
        (rng.random((3, 4)) < 0.5, rng.random((3, 4)), rng.random(4)),
        (rng.random((3, 1)) < 0.5, rng.random((2, 1, 1)), rng.random(4)),
        (np.array(True), rng.random(3), rng.random(())),
        (rng.random((0, 2)) < 0.5, rng.random((0, 2)), rng.random(())),
        (rng.random(5) < 0.5, rng.integers(0, 9, 5), rng.integers(0, 9, 5)),
    ]),
)  # fmt: skip
