"""Gradients: the tape's entry points, grad mode, and custom functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from eager import _C
from eager._C import Tensor
from eager.autograd.function import Function, FunctionCtx, once_differentiable
from eager.autograd.grad_mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from eager.errors import AutogradError, helpful

__all__ = [
    "Function",
    "FunctionCtx",
    "backward",
    "enable_grad",
    "grad",
    "inference_mode",
    "is_grad_enabled",
    "no_grad",
    "once_differentiable",
    "set_grad_enabled",
]

Tensors: TypeAlias = Tensor | Sequence[Tensor]
Seeds: TypeAlias = Tensor | Sequence[Tensor | None] | None


def _several(given: Any) -> tuple[Any, ...]:
    return (given,) if isinstance(given, Tensor) else tuple(given)


def _seeds(given: Seeds, count: int) -> tuple[Tensor | None, ...]:
    return (None,) * count if given is None else _several(given)


def backward(
    tensors: Tensors,
    grad_tensors: Seeds = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Tensors | None = None,
) -> None:
    """Adds the gradients of the sum of `tensors` to the ``.grad`` of leaves, or of `inputs`.

    Args:
        tensors: what to differentiate.
        grad_tensors: the gradients of `tensors`; may be left out for tensors of one element.
        retain_graph: keep saved values for another backward; by default `create_graph`.
        create_graph: record the gradients, so that they can be differentiated.
        inputs: accumulate only into these.

    Raises:
        AutogradError: no gradient is recorded, the graph has been released, or a gradient is
            missing for a tensor of several elements.
        ShapeError: a gradient's shape differs from its tensor's.
    """
    ys = _several(tensors)
    keep = create_graph if retain_graph is None else retain_graph
    xs = () if inputs is None else _several(inputs)
    if inputs is not None and not xs:
        raise ValueError("backward: inputs must not be empty")
    _C.run_backward(ys, _seeds(grad_tensors, len(ys)), xs, keep, create_graph, True)


def grad(
    outputs: Tensors,
    inputs: Tensors,
    grad_outputs: Seeds = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """The gradients of the sum of `outputs` with respect to `inputs`, as a tuple.

    Args:
        outputs: what to differentiate.
        inputs: with respect to what.
        grad_outputs: the gradients of `outputs`; may be left out for tensors of one element.
        retain_graph: keep saved values for another backward; by default `create_graph`.
        create_graph: record the gradients, so that they can be differentiated.
        allow_unused: give None for inputs that `outputs` do not depend on, instead of raising;
            by default `materialize_grads`.
        materialize_grads: give zeros for them.

    Raises:
        AutogradError: as `backward`, and for an unused input.

    >>> import eager
    >>> x = eager.tensor(3.0, requires_grad=True)
    >>> (g,) = eager.autograd.grad(x**3, x, create_graph=True)
    >>> eager.autograd.grad(g, x)
    (tensor(18.),)
    """
    ys, xs = _several(outputs), _several(inputs)
    keep = create_graph if retain_graph is None else retain_graph
    for x in xs:
        if not x.requires_grad:
            raise helpful(
                AutogradError, "grad", "an input has no gradient", "inputs that require grad",
                f"a tensor of shape {tuple(x.shape)} that does not", "x.requires_grad_()",
            )  # fmt: skip
    if not xs:
        raise ValueError("grad: inputs must not be empty")
    found = _C.run_backward(ys, _seeds(grad_outputs, len(ys)), xs, keep, create_graph, False)
    if materialize_grads:
        return tuple(_zeros(x) if g is None else g for g, x in zip(found, xs, strict=True))
    if not allow_unused:
        for i, g in enumerate(found):
            if g is None:
                raise helpful(
                    AutogradError, "grad", f"input {i} was not used for the outputs",
                    "inputs that the outputs depend on", "one that they do not depend on",
                    "allow_unused=True",
                )  # fmt: skip
    return found


def _zeros(x: Tensor) -> Tensor:
    return _C.empty_like(x.detach()).zero_()
