"""Creation functions, with PyTorch's arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import eager
from eager.errors import ArgumentError, ShapeError, helpful
from eager.op import composite
from eager.ops import comparison as c
from eager.ops import create as p
from eager.ops import unary as u
from eager.ops.functions._common import Number, public, size_of
from eager.ops.functions.pieces import cat
from eager.samples import array, calls

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "arange", "clone", "eye", "full", "full_like", "linspace", "ones", "ones_like", "zeros",
    "zeros_like",
]  # fmt: skip

Size = Sequence[int]


def finish(x: Tensor, device: Any, requires_grad: bool) -> Tensor:
    """What every creation function does last."""
    if device is not None and x.device != eager.device(device):
        x = x.to(device)
    return x.requires_grad_() if requires_grad else x


def checked_size(op: str, size: Sequence[int]) -> tuple[int, ...]:
    """A shape without negative sizes."""
    shape = tuple(size)
    if any(n < 0 for n in shape):
        raise helpful(ShapeError, op, "a size is negative", "sizes of 0 or more", str(shape))
    return shape


def filled(op: str, size: Sequence[int], value: Any, dtype: Any) -> Tensor:
    """A constant tensor; the dtype follows the value if it is None."""
    shape = checked_size(op, size)
    if isinstance(value, eager.Tensor):
        value = value.item()
    if dtype is None:
        kinds = {bool: eager.bool, int: eager.int64}
        dtype = kinds.get(type(value)) or eager.get_default_dtype()
    elif not isinstance(dtype, eager.dtype):  # Python's int, float and bool, and names
        dtype = eager.empty(0, dtype=dtype).dtype
    if isinstance(value, int) and not dtype.is_floating_point:
        result: Tensor = p.full_int(int(value), shape, dtype)
    else:
        result = p.full(float(value), shape, dtype)
    return result


_sizes = calls(lambda rng: [((2, 3),), (2, 3), ((),), ((0, 2),), (2, {"dtype": "int32"})])


def _shape(size: Any) -> Any:
    return size[0] if len(size) == 1 else size


@composite(ref=lambda *s, dtype="float32": np.zeros(_shape(s), dtype), samples=_sizes, onnx=None,
           differentiable=False)  # fmt: skip
def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros."""
    dtype = dtype or eager.get_default_dtype()
    return finish(filled("zeros", size_of(size), 0, dtype), device, requires_grad)


@composite(ref=lambda *s, dtype="float32": np.ones(_shape(s), dtype), samples=_sizes, onnx=None,
           differentiable=False)  # fmt: skip
def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones."""
    dtype = dtype or eager.get_default_dtype()
    return finish(filled("ones", size_of(size), 1, dtype), device, requires_grad)


@composite(
    ref=lambda size, v, dtype=None: np.full(
        size, v, dtype or ("float32" if isinstance(v, float) else None)),
    samples=calls(lambda rng: [
        ((2, 3), 1.5), ((2,), 7), ((), True), ((3,), 2, {"dtype": "float64"}), ((2,), -(2**62)),
    ]),
    onnx=None, differentiable=False,
)  # fmt: skip
def full(
    size: Size, fill_value: Any, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """One value everywhere; its type gives the dtype unless that is given."""
    return finish(filled("full", size_of((size,)), fill_value, dtype), device, requires_grad)


_likes = calls(lambda rng: [
    (array(rng, (2, 3)),), (rng.integers(0, 9, (3,)),), (array(rng, (2,)), {"dtype": "int64"}),
])  # fmt: skip


@composite(ref=np.zeros_like, samples=_likes, onnx=None, differentiable=False)
def zeros_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Zeros of another tensor's shape, dtype and device."""
    return full_like(input, 0, dtype=dtype, device=device, requires_grad=requires_grad,
                     memory_format=memory_format)  # fmt: skip


@composite(ref=np.ones_like, samples=_likes, onnx=None, differentiable=False)
def ones_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Ones of another tensor's shape, dtype and device."""
    return full_like(input, 1, dtype=dtype, device=device, requires_grad=requires_grad,
                     memory_format=memory_format)  # fmt: skip


@composite(
    ref=np.full_like, onnx=None, differentiable=False,
    samples=calls(lambda rng: [(array(rng, (2, 3)), 2.5), (rng.integers(0, 9, (3,)), 4)]),
)  # fmt: skip
def full_like(
    input: Tensor, fill_value: Any, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False, memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """One value everywhere, in another tensor's shape, dtype and device."""
    device = input.device if device is None else device
    made = filled("full_like", input.shape, fill_value, dtype or input.dtype)
    if memory_format is not None:
        made = made.contiguous(memory_format=memory_format)
    return finish(made, device, requires_grad)


@public("clone")
def clone(input: Tensor, *, memory_format: Any = None) -> Tensor:
    """A copy; gradients flow through it."""
    if memory_format is not None:
        return input.clone(memory_format=memory_format)
    copied: Tensor = u.clone(input)
    return copied


def new_zeros(input: Tensor, *size: Any, dtype: Any = None, device: Any = None,
              requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Zeros of this tensor's dtype and device."""
    return new_full(input, size_of(size), 0, dtype=dtype, device=device,
                    requires_grad=requires_grad)  # fmt: skip


def new_ones(input: Tensor, *size: Any, dtype: Any = None, device: Any = None,
             requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Ones of this tensor's dtype and device."""
    return new_full(input, size_of(size), 1, dtype=dtype, device=device,
                    requires_grad=requires_grad)  # fmt: skip


def new_full(input: Tensor, size: Size, fill_value: Any, *, dtype: Any = None,
             device: Any = None, requires_grad: bool = False) -> Tensor:  # fmt: skip
    """One value everywhere, of this tensor's dtype and device."""
    device = input.device if device is None else device
    made = filled("new_full", size_of((size,)), fill_value, dtype or input.dtype)
    return finish(made, device, requires_grad)


def new_empty(input: Tensor, *size: Any, dtype: Any = None, device: Any = None,
              requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Uninitialised, of this tensor's dtype and device."""
    return eager.empty(
        size_of(size), dtype=dtype or input.dtype,
        device=input.device if device is None else device, requires_grad=requires_grad,
    )  # fmt: skip


def new_tensor(input: Tensor, data: Any, *, dtype: Any = None, device: Any = None,
               requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Copies data, to this tensor's dtype and device."""
    return eager.tensor(
        data, dtype=dtype or input.dtype,
        device=input.device if device is None else device, requires_grad=requires_grad,
    )  # fmt: skip


def _arange_dtype(x: Any, dtype: Any) -> Any:
    if dtype is None and x.dtype.kind == "f":
        dtype = "float32"
    return x if dtype is None else x.astype(dtype)


@composite(
    ref=lambda *a, dtype=None: _arange_dtype(np.arange(*a), dtype), onnx="Range",
    samples=calls(lambda rng: [
        (5,), (2, 9, 3), (9, 2, -2), (0.0, 1.0, 0.25), (3, {"dtype": "float64"}), (1.5,), (0,),
        (1, 2.1, 0.5),
    ]),
    differentiable=False,
)  # fmt: skip
def arange(
    start: Number, end: Number | None = None, step: Number = 1, *, dtype: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """start, start + step, ... up to but without end.  arange(n) counts from 0."""
    if end is None:
        start, end = 0, start
    if step == 0 or (end - start) / step < 0:
        raise helpful(
            ArgumentError, "arange", "the step does not lead from start to end",
            "a step that is not 0, with the sign of end - start",
            f"start {start}, end {end}, step {step}",
        )  # fmt: skip
    integers = all(isinstance(v, int) for v in (start, end, step))
    count = -(-(end - start) // step) if integers else math.ceil((end - start) / step)
    dtype = dtype or (eager.int64 if integers else eager.get_default_dtype())
    shape = (int(count),)
    if integers:
        made = p.arange_int(start, step, shape, dtype)
    else:
        made = p.arange(float(start), float(step), shape, dtype)
    return finish(made, device, requires_grad)


@composite(
    ref=lambda a, b, n, dtype="float32": np.linspace(a, b, n).astype(dtype), onnx=None,
    samples=calls(lambda rng: [
        (0.0, 1.0, 5), (3, -2, 8), (1.0, 2.0, 1), (0.0, 1.0, 0), (0, 10, 7, {"dtype": "float64"}),
    ]),
    differentiable=False,
)  # fmt: skip
def linspace(
    start: float, end: float, steps: int, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """`steps` evenly spaced values from start to end, both included."""
    if steps < 0:
        raise helpful(ArgumentError, "linspace", "steps is negative", "0 or more", str(steps))
    dtype = dtype or eager.get_default_dtype()
    step = (end - start) / (steps - 1) if steps > 1 else 0.0
    # from both ends, so that both are exact
    half = (steps + 1) // 2
    low = p.arange(float(start), step, (half,), dtype)
    high = p.arange(end - step * (steps - half - 1), step, (steps - half,), dtype)
    return finish(cat([low, high]), device, requires_grad)


@composite(
    ref=lambda n, m=None, dtype="float32": np.eye(n, m, dtype=dtype), onnx="EyeLike",
    samples=calls(lambda rng: [(3,), (2, 4), (0,), (2, {"dtype": "int64"})]),
    differentiable=False,
)  # fmt: skip
def eye(
    n: int, m: int | None = None, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """The identity matrix, or its first m columns."""
    shape = checked_size("eye", (n, n if m is None else m))
    row = p.arange_int(0, 1, (shape[0],), eager.int64).unsqueeze(1)
    column = p.arange_int(0, 1, (shape[1],), eager.int64)
    made: Tensor = u.cast(c.eq(row, column), dtype or eager.get_default_dtype())
    return finish(made, device, requires_grad)
