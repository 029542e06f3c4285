"""Random tensors, with PyTorch's arguments.  All draw from the default generator or the one given;
the streams are described in `eager.random`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import eager
from eager.errors import ArgumentError, DTypeError, helpful
from eager.ops import comparison as c
from eager.ops import unary as u
from eager.ops.functions._common import size_of
from eager.ops.functions.create import checked_size, finish
from eager.ops.functions.shape import broadcast_shapes
from eager.random import Generator, default_generator

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "bernoulli", "normal", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like",
    "randperm",
]  # fmt: skip


def _floating(op: str, dtype: Any) -> Any:
    dtype = dtype or eager.get_default_dtype()
    if not dtype.is_floating_point:
        raise helpful(DTypeError, op, "not defined for this dtype", "a floating dtype", str(dtype))
    return dtype


def _draw(
    op: str, size: Any, dtype: Any, device: Any, requires_grad: bool, generator: Generator | None,
    *attrs: Any,
) -> Tensor:  # fmt: skip
    shape = checked_size(op, size)
    made = (generator or default_generator).draw(op, shape, dtype, *attrs)
    return finish(made, device, requires_grad)


def rand(
    *size: Any, generator: Generator | None = None, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Uniform in [0, 1)."""
    dtype = _floating("rand", dtype)
    return _draw("rand", size_of(size), dtype, device, requires_grad, generator)


def randn(
    *size: Any, generator: Generator | None = None, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Normal with mean 0 and variance 1."""
    dtype = _floating("randn", dtype)
    return _draw("randn", size_of(size), dtype, device, requires_grad, generator)


def randint(
    low: int, high: Any = None, size: Any = None, *, generator: Generator | None = None,
    dtype: Any = None, device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Uniform integers in [low, high); randint(high, size) begins at 0."""
    if size is None:
        low, high, size = 0, low, high
    if size is None or not low < high:
        raise helpful(
            ArgumentError, "randint", "there is nothing to draw from", "low < high, and a size",
            f"low {low}, high {high}, size {size}",
        )  # fmt: skip
    dtype = dtype or eager.int64
    shape = size_of((size,))
    return _draw("randint", shape, dtype, device, requires_grad, generator, low, high)


def randperm(
    n: int, *, generator: Generator | None = None, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """The integers below n in random order."""
    (n,) = checked_size("randperm", (n,))
    made = (generator or default_generator).permutation(n)
    return finish(made if dtype is None else made.to(dtype), device, requires_grad)


def rand_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """rand of another tensor's shape, dtype and device."""
    return rand(tuple(input.shape), dtype=dtype or input.dtype, generator=generator,
                device=device or input.device, requires_grad=requires_grad)  # fmt: skip


def randn_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """randn of another tensor's shape, dtype and device."""
    return randn(tuple(input.shape), dtype=dtype or input.dtype, generator=generator,
                 device=device or input.device, requires_grad=requires_grad)  # fmt: skip


def randint_like(input: Tensor, low: int, high: int | None = None, *, dtype: Any = None,
                 device: Any = None, requires_grad: bool = False) -> Tensor:  # fmt: skip
    """randint of another tensor's shape, dtype and device."""
    if high is None:
        low, high = 0, low
    return randint(low, high, tuple(input.shape), dtype=dtype or input.dtype,
                   device=device or input.device, requires_grad=requires_grad)  # fmt: skip


def normal(mean: Any = 0.0, std: Any = 1.0, size: Any = None, *,
           generator: Generator | None = None, dtype: Any = None) -> Tensor:  # fmt: skip
    """Normal with the given mean and standard deviation: numbers with a size, or tensors."""
    if size is None:
        tensors = [v for v in (mean, std) if isinstance(v, eager.Tensor)]
        if not tensors:
            raise helpful(ArgumentError, "normal", "the shape is unknown",
                          "a size, or tensors for mean or std", "numbers alone")  # fmt: skip
        size = broadcast_shapes(*(tuple(v.shape) for v in tensors))
        dtype = dtype or tensors[0].dtype
    drawn = randn(size, generator=generator, dtype=dtype)
    result: Tensor = drawn * std + mean
    return result


def bernoulli(input: Tensor, p: float | None = None, *,
              generator: Generator | None = None) -> Tensor:  # fmt: skip
    """1 with the probability in `input` (or p), else 0; in the input's dtype."""
    drawn = rand(tuple(input.shape), generator=generator, dtype=eager.float32)
    result: Tensor = u.cast(c.lt(drawn, input if p is None else p), input.dtype)
    # A draw is a step function of the probability: its slope, as of every step, is 0.
    return result + u.no_slope(input) if input.requires_grad else result


def uniform_(
    input: Tensor, from_: float = 0.0, to: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Fills with values uniform in [from_, to)."""
    drawn = rand(tuple(input.shape), generator=generator, dtype=_floating("uniform_", input.dtype))
    return input.copy_(drawn * (to - from_) + from_)


def normal_(
    input: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Fills with normal values."""
    drawn = randn(tuple(input.shape), generator=generator, dtype=_floating("normal_", input.dtype))
    return input.copy_(drawn * std + mean)


def bernoulli_(input: Tensor, p: float = 0.5, *, generator: Generator | None = None) -> Tensor:
    """Fills with 1 with probability p, else 0."""
    return input.copy_(bernoulli(input, p, generator=generator))


def random_(
    input: Tensor, low: int = 0, high: int | None = None, *, generator: Generator | None = None
) -> Tensor:
    """Fills with integers in [low, high); random_(high) begins at 0.

    Without bounds, up to the greatest integer the dtype holds exactly."""
    if high is None and low:
        low, high = 0, low
    if high is None:
        digits = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53, "bool": 1}
        unsigned = 8 if input.dtype.name == "uint8" else 8 * input.dtype.itemsize - 1
        high = 2 ** digits.get(input.dtype.name, unsigned) - (input.dtype.name == "int64")
        high = 2 if input.dtype.name == "bool" else high
    drawn = randint(low, high, tuple(input.shape), generator=generator)
    return input.copy_(drawn)
