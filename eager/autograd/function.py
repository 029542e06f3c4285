"""Functions with a hand-written gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

from eager import _C
from eager._C import Tensor
from eager.autograd.grad_mode import is_grad_enabled, no_grad
from eager.errors import AutogradError, VersionError, helpful

__all__ = ["Function", "FunctionCtx", "once_differentiable"]


class _Saved(NamedTuple):
    tensor: Tensor | None
    version: int
    output: int  # which output of the function it is; -1: none


class FunctionCtx:
    """What `Function.forward` hands to `Function.backward`; attributes may be set freely.

    Attributes:
        needs_input_grad: for each argument of `forward`, whether its gradient is wanted.
    """

    needs_input_grad: tuple[bool, ...]

    def __init__(self, function: type[Function]) -> None:
        self._function = function
        self._to_save: tuple[Tensor | None, ...] = ()
        self._saved: tuple[_Saved, ...] | None = None
        self._dirty: tuple[Tensor, ...] = ()
        self._non_differentiable: tuple[Tensor, ...] = ()
        self._materialize = True
        self._node: _C.Node | None = None  # while backward runs

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keeps inputs or outputs of forward for `saved_tensors`; call it once."""
        self._to_save = tensors

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Says that forward changed these inputs in place; forward must return them."""
        self._dirty = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Says that these outputs have no gradient."""
        self._non_differentiable = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Whether backward gets zeros (the default) or None for outputs without gradient."""
        self._materialize = value

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """What forward saved.

        Raises:
            AutogradError: backward has already run and released it.
            VersionError: it was changed in place since.
        """
        if self._saved is None:
            raise helpful(
                AutogradError, self._function.__name__, "saved tensors have been released",
                "one backward", "a second one", "backward(retain_graph=True)",
            )  # fmt: skip
        return tuple(self._unpack(s) for s in self._saved)

    def _unpack(self, saved: _Saved) -> Tensor | None:
        x = saved.tensor
        if x is None:
            return None
        if x._version != saved.version:
            raise helpful(
                VersionError, self._function.__name__, "a saved tensor was changed in place",
                f"version {saved.version}", f"version {x._version}", "save a clone",
            )  # fmt: skip
        if saved.output >= 0 and self._node is not None and is_grad_enabled():
            return _C.with_history(x, self._node, saved.output)
        return x

    def _own_outputs(self, outputs: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The outputs, where an input that was handed through unchanged is an alias of its own."""
        for x in self._dirty:
            if not _holds(outputs, x):
                raise helpful(
                    AutogradError, self._function.__name__, "a dirty input was not returned",
                    "every tensor of mark_dirty among the outputs", "one that is missing",
                )  # fmt: skip
            if x.is_leaf and x.requires_grad:
                raise helpful(
                    AutogradError, self._function.__name__, "a leaf was changed in place",
                    "an input that was computed", "a leaf that requires grad", "x.clone()",
                )  # fmt: skip
        return tuple(
            y.detach() if _holds(inputs, y) and isinstance(y, Tensor) and not _holds(self._dirty, y)
            else y
            for y in outputs
        )  # fmt: skip

    def _pack(self, outputs: tuple[Any, ...]) -> None:
        """Saves what forward asked for; outputs without history, or they would keep themselves
        alive."""
        saved = []
        for x in self._to_save:
            place = next((i for i, y in enumerate(outputs) if y is x), -1)
            if x is None:
                saved.append(_Saved(None, 0, -1))
            else:
                saved.append(_Saved(x.detach() if place >= 0 else x, x._version, place))
        self._saved = tuple(saved)
        self._to_save = ()

    def _backward(self, node: _C.Node, grads: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
        """Called by the tape: one gradient or None for each argument of forward."""
        self._node = node
        try:
            result = self._function.backward(self, *grads)
        finally:
            self._node = None
        given = result if isinstance(result, tuple) else (result,)
        wanted = len(self.needs_input_grad)
        extra = given[wanted:]
        if len(given) < wanted or any(g is not None for g in extra):
            raise helpful(
                AutogradError, self._function.__name__, "backward gave another number of gradients",
                f"{wanted}, one for each argument of forward", f"{len(given)}",
            )  # fmt: skip
        for g in given:
            if g is not None and not isinstance(g, Tensor):
                raise TypeError(
                    f"{self._function.__name__}.backward: expected tensors or None, not "
                    f"{type(g).__name__}"
                )
        return given[:wanted]

    def _release(self) -> None:
        self._saved = None


class Function:
    """A function with a hand-written gradient: subclass it and call ``apply``.

    >>> import eager
    >>> class Square(eager.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         ctx.save_for_backward(x)
    ...         return x * x
    ...     @staticmethod
    ...     def backward(ctx, grad):
    ...         (x,) = ctx.saved_tensors
    ...         return 2 * x * grad
    >>> x = eager.tensor([3.0], requires_grad=True)
    >>> Square.apply(x).sum().backward()
    >>> x.grad
    tensor([6.])
    """

    @staticmethod
    def forward(*args: Any) -> Any:
        """Computes outputs (a tensor, or a tuple with tensors): ``forward(ctx, *args)``, or
        ``forward(*args)`` if there is a `setup_context`.  The tape is off."""
        raise NotImplementedError("a Function must define forward")

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        """Saves what backward needs, if forward does not take the context."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The gradients of the arguments from those of the outputs; None where there is none."""
        raise NotImplementedError("a Function must define backward")

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Runs forward and, if a gradient is wanted, records the function on the tape."""
        tensors = tuple(a if isinstance(a, Tensor) else None for a in args)
        ctx = FunctionCtx(cls)
        wanted = is_grad_enabled()
        ctx.needs_input_grad = tuple(wanted and t is not None and t.requires_grad for t in tensors)
        with no_grad():
            if cls.setup_context is Function.setup_context:
                result = cls.forward(ctx, *args)
            else:
                result = cls.forward(*args)
                cls.setup_context(ctx, args, result)
        if not any(ctx.needs_input_grad):
            return result
        single = not isinstance(result, tuple)
        outputs = ctx._own_outputs((result,) if single else result, tensors)
        made = [(i, y) for i, y in enumerate(outputs) if isinstance(y, Tensor)]
        _C.record_function(
            ctx,
            f"{cls.__name__}Backward",
            tensors,
            tuple(y for _, y in made),
            tuple(not _holds(ctx._non_differentiable, y) for _, y in made),
            ctx._materialize,
        )
        ctx._pack(tuple(y for _, y in made))
        return outputs[0] if single else outputs


def _holds(tensors: tuple[Any, ...], x: Any) -> bool:
    return any(t is x for t in tensors)


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a `Function.backward` that cannot itself be differentiated.

    A gradient of its gradient then raises AutogradError instead of being wrong."""

    @wraps(backward)
    def wrapped(ctx: FunctionCtx, *grads: Tensor | None) -> Any:
        with no_grad():
            result = backward(ctx, *grads)
        if not is_grad_enabled():
            return result
        name = ctx._function.__name__
        given = result if isinstance(result, tuple) else (result,)
        return tuple(
            None if g is None else _Refusal.apply(name, g.detach().requires_grad_()) for g in given
        )

    return wrapped


class _Refusal(Function):
    """The identity, whose gradient is an error."""

    @staticmethod
    def forward(ctx: Any, name: str, x: Tensor) -> Tensor:
        ctx.name = name
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ARG004
        raise helpful(
            AutogradError, ctx.name, "its gradient is marked as differentiable only once",
            "backward without create_graph", "a gradient of the gradient",
        )  # fmt: skip
