"""What the public functions share."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import eager
from eager.errors import ArgumentError, IndexOutOfRange, helpful
from eager.op import registry

if TYPE_CHECKING:
    from eager import Tensor

F = TypeVar("F", bound=Callable[..., Any])
Number = bool | int | float
Dims = int | Sequence[int] | None


def public(name: str) -> Callable[[F], F]:
    """Decorator: the function is the public call of the op `name`."""

    def wrap(fn: F) -> F:
        registry[name].public = fn
        return fn

    return wrap


def canonical_dim(op: str, dim: int, ndim: int) -> int:
    """A dimension given by the user, made non-negative.  0-dim tensors have dimensions 0 and -1."""
    n = max(ndim, 1)
    dim = operator.index(dim)
    if not -n <= dim < n:
        raise helpful(
            IndexOutOfRange, op, "dimension out of range",
            f"from {-n} to {n - 1} for {ndim} dimensions", str(dim),
        )  # fmt: skip
    return dim + n if dim < 0 else dim


def canonical_dims(op: str, dim: Dims, ndim: int) -> tuple[int, ...]:
    """Sorted and distinct dimensions; None or an empty sequence means all of them."""
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return tuple(range(ndim))
    given = (dim,) if isinstance(dim, int) else tuple(dim)
    dims = sorted(canonical_dim(op, d, ndim) for d in given)
    if len(set(dims)) != len(dims):
        raise helpful(
            ArgumentError, op, "a dimension is named twice", "distinct dimensions", str(given)
        )
    return tuple(dims) if ndim else ()


def is_tensor(x: Any) -> bool:
    """Whether x is a Tensor (and not a number, an array or something else)."""
    return isinstance(x, eager.Tensor)


def size_of(given: Sequence[Any]) -> tuple[int, ...]:
    """A shape given as ``f(2, 3)`` or ``f((2, 3))``."""
    if len(given) == 1 and not isinstance(given[0], int | eager.Tensor):
        return tuple(int(n) for n in given[0])
    return tuple(int(n) for n in given)


def float_dtype(x: Tensor) -> Any:
    """The floating dtype a function of `x` computes in."""
    return x.dtype if x.dtype.is_floating_point else eager.get_default_dtype()
