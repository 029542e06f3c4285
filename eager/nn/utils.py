"""Tools on parameters: clipping of gradients, and one flat vector for all."""

from __future__ import annotations

import math
from collections.abc import Iterable

import eager
from eager import Tensor
from eager.errors import ArgumentError, ShapeError, helpful


def _list(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def get_total_norm(
    tensors: Tensor | Iterable[Tensor], norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """The norm of all tensors' elements together, as a 0-dim tensor."""
    given = _list(tensors)
    if not given:
        return eager.tensor(0.0)
    total: Tensor
    if norm_type == math.inf:
        total = eager.stack([t.abs().amax() for t in given]).amax()
    elif norm_type == 2:
        total = eager.stack([(t * t).sum() for t in given]).sum().sqrt()
    else:
        powers = [(t.abs() ** norm_type).sum() for t in given]
        total = eager.stack(powers).sum() ** (1 / norm_type)
    if error_if_nonfinite and not math.isfinite(total.item()):
        raise helpful(
            ArgumentError, "get_total_norm", "the norm is not finite",
            expected="finite elements", given=f"a norm of {total.item()}",
            hint="pass error_if_nonfinite=False to go on",
        )  # fmt: skip
    return total


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scales all gradients so that their norm together is at most `max_norm`.

    Returns the norm before.  Reads no value, so that it traces.
    """
    with eager.no_grad():
        grads = [p.grad for p in _list(parameters) if p.grad is not None]
        total = get_total_norm(grads, norm_type, error_if_nonfinite)
        factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor)
    return total


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limits every element of every gradient to ±`clip_value`."""
    with eager.no_grad():
        for p in _list(parameters):
            if p.grad is not None:
                p.grad.copy_(p.grad.clamp(-clip_value, clip_value))


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements in one 1-dimensional tensor."""
    result: Tensor = eager.cat([p.reshape(-1) for p in parameters])
    return result


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Copies the elements of `vec`, in order, into the parameters."""
    params = list(parameters)
    needed = sum(p.numel() for p in params)
    if tuple(vec.shape) != (needed,):
        raise helpful(
            ShapeError, "vector_to_parameters", "the vector does not fit the parameters",
            expected=f"shape ({needed},)", given=f"{tuple(vec.shape)}",
        )  # fmt: skip
    with eager.no_grad():
        at = 0
        for p in params:
            p.copy_(vec[at : at + p.numel()].reshape(*p.shape))
            at += p.numel()
