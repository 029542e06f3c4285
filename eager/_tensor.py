"""Tensor methods that are written in Python: copying, pickling, hooks, formatting."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from eager import _C
from eager._C import Tensor
from eager.errors import AutogradError, helpful


class HookHandle:
    """What `Tensor.register_hook` returns; also a context manager that removes the hook."""

    def __init__(self, id: int) -> None:
        self.id = id

    def remove(self) -> None:
        """Takes the hook away; a second call does nothing."""
        _C.remove_hook(self.id)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def register_hook(self: Tensor, hook: Callable[[Tensor], Tensor | None]) -> HookHandle:
    """Calls ``hook(grad)`` whenever backward has computed this tensor's gradient.

    What the hook returns, if not None, replaces the gradient.

    Raises:
        AutogradError: the tensor does not require grad.
    """
    return HookHandle(self._add_hook(hook))


def register_post_accumulate_grad_hook(self: Tensor, hook: Callable[[Tensor], None]) -> HookHandle:
    """Calls ``hook(self)`` whenever backward has set or added to ``self.grad``.

    Raises:
        AutogradError: the tensor is not a leaf that requires grad.
    """
    return HookHandle(self._add_after_hook(hook))


def _deepcopy(self: Tensor, memo: dict[int, Any]) -> Tensor:
    if not self.is_leaf:
        raise helpful(
            AutogradError, "deepcopy", "the tensor is part of a graph", "a leaf tensor",
            f"the result of {self.grad_fn!r}", "x.detach().clone()",
        )  # fmt: skip
    data = self.detach().clone()
    if type(self) is Tensor:
        copied = data.requires_grad_(self.requires_grad)
    else:
        copied = Tensor._make_subclass(type(self), data, self.requires_grad)
    memo[id(self)] = copied
    if self.grad is not None:
        copied.grad = copy.deepcopy(self.grad, memo)
    state = _instance_dict(self)
    if state:
        copied.__dict__.update(copy.deepcopy(state, memo))
    return copied


def _instance_dict(x: Tensor) -> dict[str, Any]:
    return x.__dict__


def _rebuild(
    cls: type[Tensor], data: bytes, dtype: _C.dtype, shape: tuple[int, ...], requires_grad: bool,
    state: dict[str, Any],
) -> Tensor:  # fmt: skip
    x = _C.frombuffer(bytearray(data), dtype=dtype) if data else _C.empty(0, dtype=dtype)
    x = x.reshape(shape)
    if cls is Tensor:
        x.requires_grad_(requires_grad)
    else:
        x = Tensor._make_subclass(cls, x, requires_grad)
    if state:
        x.__dict__.update(state)
    return x


def _reduce_ex(self: Tensor, protocol: Any) -> tuple[Any, ...]:  # noqa: ARG001
    # Only values travel, not the graph.
    data = self.detach().numpy().tobytes()
    arguments = (data, self.dtype, tuple(self.shape), self.requires_grad, _instance_dict(self))
    return _rebuild, (type(self), *arguments)


def _format(self: Tensor, spec: str) -> str:
    if self.ndim == 0 and not self.is_meta:
        return format(self.item(), spec)
    return object.__format__(self, spec)


def is_tensor(value: object) -> bool:
    """Whether `value` is a Tensor."""
    return isinstance(value, Tensor)


def is_floating_point(input: Tensor) -> bool:
    """Whether the elements of `input` are floats."""
    return input.dtype.is_floating_point


def numel(input: Tensor) -> int:
    """The number of elements of `input`."""
    return input.numel()


def install() -> None:
    """Adds the methods of this module to the type."""
    for name, method in (
        ("register_hook", register_hook),
        ("register_post_accumulate_grad_hook", register_post_accumulate_grad_hook),
        ("__deepcopy__", _deepcopy),
        ("__reduce_ex__", _reduce_ex),
        ("__format__", _format),
    ):
        setattr(Tensor, name, method)
