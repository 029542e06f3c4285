"""Nested dictionaries, lists and tuples of tensors as JSON and a flat dictionary, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eager import Tensor
from eager.errors import ArgumentError, EagerError, helpful


class Structure:
    """The tensors of one object, and what it looks like around them.

    As JSON: one-key objects ``{"tensor": name}``, ``{"dict": [[key, value], ...]}``,
    ``{"list": ...}``, ``{"tuple": ...}``, and plain values as they are.  Subclasses say how tensors
    are named, and add kinds.

    Attributes:
        tensors: by name; `pack` fills it and `unpack` takes from it.
    """

    op = "save"
    kinds = "tensors, numbers, strings, None, lists, tuples and dictionaries"

    def __init__(self, tensors: dict[str, Tensor] | None = None) -> None:
        self.tensors: dict[str, Tensor] = {} if tensors is None else tensors

    def below(self, path: str, key: str | int) -> str:
        """The path of an entry of what is at `path`."""
        return f"{path}.{key}" if path else str(key)

    def name(self, path: str) -> str:
        """The name of the tensor at `path`."""
        while path in self.tensors:
            path += "_"
        return path

    def pack(self, value: Any, path: str = "") -> Any:
        """`value` as JSON.

        Raises:
            ArgumentError: it holds something else; the text says where.
        """
        if isinstance(value, Tensor):
            name = self.name(path)
            self.tensors[name] = value
            return {"tensor": name}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Mapping):
            pairs = []
            for key, item in value.items():
                if not isinstance(key, str | int):
                    raise self.unsaved(key, f"{path}[{key!r}]")
                pairs.append([key, self.pack(item, self.below(path, key))])
            return {"dict": pairs}
        if isinstance(value, list | tuple):
            items = [self.pack(item, self.below(path, i)) for i, item in enumerate(value)]
            return {"tuple" if isinstance(value, tuple) else "list": items}
        raise self.unsaved(value, path)

    def unpack(self, value: Any) -> Any:
        """What `pack` was given.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, RecursionError: `value` is none that
                `pack` returns.
        """
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return self.tensors[content]
        if kind == "dict":
            return {key: self.unpack(item) for key, item in content}
        if kind not in ("list", "tuple"):
            raise ValueError(f"no such kind: {kind}")
        items = [self.unpack(item) for item in content]
        return tuple(items) if kind == "tuple" else items

    def unsaved(self, value: Any, path: str) -> EagerError:
        """The error for what cannot be saved."""
        return helpful(
            ArgumentError, self.op, f"{path or 'the object'} cannot be saved",
            expected=self.kinds, given=type(value).__name__,
            hint="save the state_dict() of a module or an optimizer",
        )  # fmt: skip
