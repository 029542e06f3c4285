"""Turning the recording of the tape on and off."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, overload

from eager import _C

__all__ = ["enable_grad", "inference_mode", "is_grad_enabled", "no_grad", "set_grad_enabled"]

F = TypeVar("F", bound=Callable[..., Any])

is_grad_enabled = _C.is_grad_enabled


class _GradMode:
    """A context manager and decorator under which grad mode has a fixed value."""

    mode: bool

    def __init__(self) -> None:
        # A stack: one object may be entered again while it is open.
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(_C.set_grad_mode(self.mode))

    def __exit__(self, *exc: object) -> None:
        _C.set_grad_mode(self._before.pop())

    def __call__(self, function: F) -> F:
        mode = self.mode

        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before = _C.set_grad_mode(mode)
            try:
                return function(*args, **kwargs)
            finally:
                _C.set_grad_mode(before)

        return wrapped  # type: ignore[return-value]


class no_grad(_GradMode):
    """Records nothing: ``with no_grad():``, ``@no_grad()`` or ``@no_grad``.

    >>> import eager
    >>> x = eager.tensor([1.0], requires_grad=True)
    >>> with eager.no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """

    mode = False

    @overload
    def __new__(cls) -> no_grad: ...
    @overload
    def __new__(cls, function: F) -> F: ...  # type: ignore[misc]
    def __new__(cls, function: Any = None) -> Any:  # noqa: D102
        self = super().__new__(cls)
        if function is None:
            return self
        self.__init__()  # type: ignore[misc]
        return self(function)


class enable_grad(_GradMode):
    """Records again inside a `no_grad` block."""

    mode = True


class set_grad_enabled(_GradMode):
    """Sets grad mode at once; as a context manager, restores it at the end."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.mode = mode
        self._outer = _C.set_grad_mode(mode)

    def __enter__(self) -> None:
        self._before.append(self._outer)
        _C.set_grad_mode(self.mode)

    def __call__(self, function: F) -> F:
        """Decorates a function, which is all that then has the mode."""
        _C.set_grad_mode(self._outer)
        return super().__call__(function)


class inference_mode(_GradMode):
    """The same as `no_grad`; with ``mode=False``, as `enable_grad`."""

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self.mode = not mode
