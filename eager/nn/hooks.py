"""Functions that a module calls before and after its forward, and around its backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eager import Tensor, _state
from eager.autograd import Function

Hook = Callable[..., Any]


class RemovableHandle:
    """What registering a hook returns; also a context manager that removes it at the end."""

    _next_id = 0

    def __init__(self, table: dict[int, Any]) -> None:
        self._table = table
        self.id = RemovableHandle._next_id
        RemovableHandle._next_id += 1

    def remove(self) -> None:
        """Takes the hook away; a second call does nothing."""
        if self._table.pop(self.id, None) is not None:
            _state.bump()

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


class Hooks:
    """The hooks of one module.  Forward tables hold ``(function, takes keyword arguments)``."""

    def __init__(self) -> None:
        self.forward_pre: dict[int, tuple[Hook, bool]] = {}
        self.forward: dict[int, tuple[Hook, bool]] = {}
        self.backward_pre: dict[int, Hook] = {}
        self.backward: dict[int, Hook] = {}

    def add(self, table: dict[int, Any], entry: Any, prepend: bool) -> RemovableHandle:
        """Registers `entry` last, or first with `prepend`."""
        handle = RemovableHandle(table)
        if prepend:
            later = dict(table)
            table.clear()
            table[handle.id] = entry
            table.update(later)
        else:
            table[handle.id] = entry
        _state.bump()
        return handle

    def call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``module.forward`` with every hook around it."""
        for hook, takes_kwargs in list(self.forward_pre.values()):
            if takes_kwargs:
                changed = hook(module, args, kwargs)
                if changed is not None:
                    args, kwargs = changed
            else:
                changed = hook(module, args)
                if changed is not None:
                    args = changed if isinstance(changed, tuple) else (changed,)
        watch = _Watch(self, module) if self.backward or self.backward_pre else None
        if watch is not None:
            args = watch.inputs(args)
        result = module.forward(*args, **kwargs)
        if watch is not None:
            result = watch.outputs(result)
        for hook, takes_kwargs in list(self.forward.values()):
            changed = (
                hook(module, args, kwargs, result) if takes_kwargs else hook(module, args, result)
            )
            if changed is not None:
                result = changed
        return result


class _Watch:
    """One call of a module whose backward has hooks: an identity op stands before its inputs and
    one after its outputs; their gradients are the module's grad_input and grad_output."""

    def __init__(self, hooks: Hooks, module: Any) -> None:
        self.hooks = hooks
        self.module = module
        self.grad_output: tuple[Tensor | None, ...] = ()
        self.input_places: list[int] = []
        self.input_count = 0

    def inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.input_count = len(args)
        self.input_places = [
            i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad
        ]
        if not self.input_places:
            return args
        marked = _as_tuple(_BeforeInputs.apply(self, *(args[i] for i in self.input_places)))
        changed = list(args)
        for i, tensor in zip(self.input_places, marked, strict=True):
            changed[i] = tensor
        return tuple(changed)

    def outputs(self, result: Any) -> Any:
        single = isinstance(result, Tensor)
        if not single and not isinstance(result, (tuple, list)):
            return result
        values = [result] if single else list(result)
        places = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.requires_grad]
        if not places:
            return result
        marked = _as_tuple(_AfterOutputs.apply(self, *(values[i] for i in places)))
        for i, tensor in zip(places, marked, strict=True):
            values[i] = tensor
        return values[0] if single else type(result)(values)

    def arrived(self, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """The gradients of the outputs are known."""
        for hook in list(self.hooks.backward_pre.values()):
            changed = hook(self.module, grads)
            if changed is not None:
                grads = _as_tuple(changed)
        self.grad_output = grads
        if not self.input_places:
            self.leaving((None,) * self.input_count)
        return grads

    def leaving(self, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """The gradients of all inputs are known, None where an input needs none."""
        for hook in list(self.hooks.backward.values()):
            changed = hook(self.module, grads, self.grad_output)
            if changed is not None:
                grads = _as_tuple(changed)
        return grads


class _BeforeInputs(Function):
    @staticmethod
    def forward(ctx: Any, watch: _Watch, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.watch = watch
        return tuple(t.detach() for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        watch = ctx.watch
        full: list[Tensor | None] = [None] * watch.input_count
        for i, grad in zip(watch.input_places, grads, strict=True):
            full[i] = grad
        changed = watch.leaving(tuple(full))
        return (None, *(changed[i] for i in watch.input_places))


class _AfterOutputs(Function):
    @staticmethod
    def forward(ctx: Any, watch: _Watch, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.watch = watch
        return tuple(t.detach() for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *ctx.watch.arrived(grads))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
