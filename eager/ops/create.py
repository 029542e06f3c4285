"""Tensors from nothing: constants and sequences."""

from __future__ import annotations

from typing import Any

import numpy as np

from eager.op import Promotion, elementwise
from eager.samples import calls


def _full_like_numpy(value: Any, shape: Any, dtype: str) -> Any:
    return np.full(shape, value, dtype=dtype)


full = elementwise(
    "full",
    lambda k, value: value,
    attrs="value: float, shape: ints, dtype: dtype",
    vjp=None, dtype=Promotion.ATTR, onnx="ConstantOfShape", ref=_full_like_numpy,
    samples=calls(lambda rng: [
        (1.5, (2, 3), "float64"), (-2.0, (), "float32"), (np.inf, (3,), "float32"),
        (3.0, (2,), "int16"), (1.0, (2,), "bool"), (0.0, (0, 2), "float32"),
    ]),
    doc="Every element is `value`; exact for integers up to 2^53.",
)  # fmt: skip

full_int = elementwise(
    "full_int",
    lambda k, value: value,
    attrs="value: int, shape: ints, dtype: dtype",
    vjp=None, dtype=Promotion.ATTR, onnx="ConstantOfShape", ref=_full_like_numpy,
    samples=calls(lambda rng: [
        (2**62 + 1, (2, 3), "int64"), (-7, (2,), "int8"), (3, (2,), "float32"), (1, (2,), "bool"),
    ]),
    doc="Every element is the integer `value`.",
)  # fmt: skip

# In float64 whatever the dtype, so that only the last step rounds.
arange = elementwise(
    "arange",
    lambda k, i, start, step: k.fma(k.cast(i, "float64"), step, start),
    attrs="start: float, step: float, shape: ints, dtype: dtype", indexed=True,
    vjp=None, dtype=Promotion.ATTR, onnx="Range",
    ref=lambda start, step, shape, dtype: (start + step * np.arange(shape[0])).astype(dtype),
    samples=calls(lambda rng: [
        (0.0, 1.0, (5,), "float32"), (-1.0, 0.25, (9,), "float64"), (2.0, -3.0, (4,), "int64"),
    ]),
    doc="start + step * i, for the flat index i.",
)  # fmt: skip

arange_int = elementwise(
    "arange_int",
    lambda k, i, start, step: start + step * i,
    attrs="start: int, step: int, shape: ints, dtype: dtype", indexed=True,
    vjp=None, dtype=Promotion.ATTR, onnx="Range",
    ref=lambda start, step, shape, dtype: (start + step * np.arange(shape[0])).astype(dtype),
    samples=calls(lambda rng: [
        (0, 1, (5,), "int64"), (2**60, 3, (4,), "int64"), (5, -2, (4,), "float32"),
    ]),
    doc="start + step * i in integers, for the flat index i.",
)  # fmt: skip
