"""A parameter group: a dictionary whose hyper-parameters compiled steps can see change."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import eager
from eager import Tensor, _state
from eager.errors import ArgumentError, helpful


class ParamGroup(dict[str, Any]):
    """The dictionary of one group's parameters and options.

    An option that is a number, or a tuple of numbers, also lives in 0-dim float64 tensors, which
    the update kernels read.  Writing the option writes the tensor in place, so that a compiled step
    uses the new value without being traced again.  Every other write is a structural change, and
    so is one that makes a number among `switches` zero or takes it from zero: the optimizer
    chooses its kernel by that.
    """

    def __init__(self, values: Mapping[str, Any], switches: Collection[str] = ()) -> None:
        super().__init__()
        self._mirrors: dict[str, tuple[Tensor, ...]] = {}
        self._switches = switches
        self.update(values)

    def tensor(self, key: str, index: int = 0) -> Tensor:
        """The tensor of option `key`, or of its entry `index` if it is a tuple."""
        return self._mirrors[key][index]

    def __setitem__(self, key: str, value: Any) -> None:
        numbers = _numbers(value)
        mirrors = self._mirrors.get(key)
        if numbers is not None and mirrors is not None and len(mirrors) == len(numbers):
            with eager.no_grad():
                for mirror, number in zip(mirrors, numbers, strict=True):
                    mirror.fill_(number)
            if key in self._switches and bool(self[key]) != bool(value):
                _state.bump()
        else:
            self._mirrors.pop(key, None)
            if numbers is not None:
                self._mirrors[key] = tuple(eager.tensor(n, dtype=eager.float64) for n in numbers)
            _state.bump()
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._mirrors.pop(key, None)
        _state.bump()

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As of a dictionary."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As of a dictionary."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> ParamGroup:  # type: ignore[override,misc]
        self.update(other)
        return self

    def pop(self, key: str, *default: Any) -> Any:
        """As of a dictionary."""
        if key not in self:
            return super().pop(key, *default)
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        """As of a dictionary."""
        key = next(reversed(self))
        return key, self.pop(key)

    def clear(self) -> None:
        """As of a dictionary."""
        for key in list(self):
            del self[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return ParamGroup, (dict(self), self._switches)

    def __repr__(self) -> str:
        return dict.__repr__(self)


def _numbers(value: Any) -> tuple[float, ...] | None:
    """The numbers of an option, or None if it is not made of numbers."""
    if isinstance(value, bool | str | list):
        return None
    if isinstance(value, tuple):
        parts = [_numbers(v) for v in value]
        flat = [p[0] for p in parts if p is not None and len(p) == 1]
        return tuple(flat) if flat and len(flat) == len(value) else None
    try:
        return (float(value),)
    except (TypeError, ValueError, RuntimeError):
        return None


def checked_params(params: Any) -> list[Tensor]:
    """`params`, a tensor or tensors, as a list of distinct leaves."""
    given = [params] if isinstance(params, Tensor) else params
    if not isinstance(given, Iterable) or isinstance(given, set | str):
        raise helpful(
            ArgumentError, "Optimizer", "parameters must come in a fixed order",
            expected="an iterable of tensors, not a set", given=type(params).__name__,
        )  # fmt: skip
    result = list(given)
    for p in result:
        if not isinstance(p, Tensor):
            raise helpful(
                ArgumentError, "Optimizer", "only tensors can be optimized",
                expected="tensors", given=type(p).__name__,
            )  # fmt: skip
        if not p.is_leaf:
            raise helpful(
                ArgumentError, "Optimizer", "only leaves can be optimized",
                expected="tensors made by no differentiable op", given=f"one made by {p.grad_fn}",
            )  # fmt: skip
    if len({id(p) for p in result}) != len(result):
        raise helpful(
            ArgumentError, "Optimizer", "a parameter occurs twice in a group",
            expected="distinct parameters", given=f"{len(result)} parameters",
        )  # fmt: skip
    return result
