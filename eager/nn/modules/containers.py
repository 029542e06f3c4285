"""Modules that hold other modules or parameters."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, overload

from eager import Tensor, _state
from eager.errors import DTypeError, IndexOutOfRange, helpful
from eager.nn.module import Module
from eager.nn.parameter import Parameter


def _position(op: str, index: Any, length: int) -> int:
    """`index` as a non-negative position in a container of `length` entries."""
    at = operator.index(index)
    if not -length <= at < length:
        raise helpful(
            IndexOutOfRange, op, "the index is out of range",
            expected=f"{-length} <= index < {length}", given=str(at),
        )  # fmt: skip
    return at % length


class _Numbered(Module):
    """Submodules under the names "0", "1", ... in order."""

    def _all(self) -> list[Any]:
        return list(self._modules.values())

    def _renumber(self, modules: Iterable[Module | None]) -> None:
        self._modules = {str(i): module for i, module in enumerate(modules)}

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())

    def __setitem__(self, index: int, module: Module) -> None:
        names = list(self._modules)
        setattr(self, names[_position(type(self).__name__, index, len(names))], module)

    def __delitem__(self, index: int | slice) -> None:
        modules = self._all()
        if not isinstance(index, slice):
            index = _position(type(self).__name__, index, len(modules))
        del modules[index]
        self._renumber(modules)

    def append(self, module: Module) -> Any:
        """Adds `module` at the end."""
        self.register_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Adds `modules` at the end."""
        for module in list(modules):
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Any:
        """Adds `module` before the one at `index`."""
        modules = self._all()
        modules.insert(index, module)
        self._renumber(modules)
        return self

    def pop(self, index: int = -1) -> Any:
        """Removes and returns the module at `index`."""
        module = self._all()[_position(type(self).__name__, index, len(self))]
        del self[index]
        return module


class Sequential(_Numbered):
    """Calls its modules one after another, each on the result of the one before.

    ``Sequential(a, b)`` names them "0", "1"; ``Sequential({"first": a, "then": b})`` as given.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__()
        if len(args) == 1 and isinstance(args[0], Mapping):
            for name, module in args[0].items():
                self.register_module(name, module)
        else:
            for i, module in enumerate(args):
                self.register_module(str(i), module)

    def forward(self, x: Any) -> Any:
        """Feeds `x` through all modules."""
        for module in self._all():
            x = module(x)
        return x

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(dict(list(self._modules.items())[index]))
        return self._all()[_position("Sequential", index, len(self))]


class ModuleList(_Numbered):
    """A list of modules, all of them registered.  It has no forward."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(self._all()[index])
        return self._all()[_position("ModuleList", index, len(self))]

    def __iadd__(self, modules: Iterable[Module]) -> ModuleList:
        self.extend(modules)
        return self

    def __add__(self, modules: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *modules])


class ModuleDict(Module):
    """A dictionary of modules, all of them registered.  It has no forward."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        self.update(modules or {})

    def __getitem__(self, key: str) -> Any:
        return self._modules[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.register_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]
        _state.bump()

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: str) -> bool:
        return key in self._modules

    def clear(self) -> None:
        """Removes every module."""
        self._modules.clear()
        _state.bump()

    def pop(self, key: str) -> Any:
        """Removes and returns the module under `key`."""
        module = self[key]
        del self[key]
        return module

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._modules.keys()

    def values(self) -> Iterable[Any]:
        """The modules."""
        return self._modules.values()

    def items(self) -> Iterable[tuple[str, Any]]:
        """Pairs of name and module."""
        return self._modules.items()

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Adds or replaces modules."""
        for key, module in dict(modules).items():
            self[key] = module


class ParameterList(Module):
    """A list of parameters, all of them registered; tensors become parameters."""

    def __init__(self, values: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.extend(values)

    @overload
    def __getitem__(self, index: int) -> Parameter: ...
    @overload
    def __getitem__(self, index: slice) -> ParameterList: ...
    def __getitem__(self, index: int | slice) -> Parameter | ParameterList:
        values: list[Any] = list(self._parameters.values())
        if isinstance(index, slice):
            return type(self)(values[index])
        return values[_position("ParameterList", index, len(values))]  # type: ignore[no-any-return]

    def __setitem__(self, index: int, value: Tensor) -> None:
        at = _position("ParameterList", index, len(self))
        self.register_parameter(str(at), self._parameter(value))

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._parameters.values()))

    def __iadd__(self, values: Iterable[Tensor]) -> ParameterList:
        return self.extend(values)

    def append(self, value: Tensor) -> ParameterList:
        """Adds one parameter at the end."""
        self.register_parameter(str(len(self)), self._parameter(value))
        return self

    def extend(self, values: Iterable[Tensor]) -> ParameterList:
        """Adds parameters at the end."""
        for value in list(values):
            self.append(value)
        return self

    @staticmethod
    def _parameter(value: Any) -> Parameter:
        if not isinstance(value, Tensor):
            raise helpful(
                DTypeError, "ParameterList", "only tensors can be parameters",
                expected="a Tensor or Parameter", given=type(value).__name__,
            )  # fmt: skip
        return value if isinstance(value, Parameter) else Parameter(value)

    def extra_repr(self) -> str:
        """One line per parameter."""
        return "\n".join(
            f"({i}): Parameter containing: [{p.dtype} of size {'x'.join(map(str, p.shape))}]"
            for i, p in enumerate(self)
        )
