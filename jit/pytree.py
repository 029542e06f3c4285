"""Nested tuples, lists and dicts of leaves: what compiled functions take and return."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Leaf:
    """The place of leaf number `index` in a structure."""

    index: int


@dataclass(frozen=True, slots=True)
class Branch:
    """A container: its class, its children, and the keys if it is a dict."""

    cls: type
    children: tuple[Leaf | Branch, ...]
    keys: tuple[Any, ...] | None = None


Spec = Leaf | Branch


def flatten(tree: Any) -> tuple[list[Any], Spec]:
    """The leaves of `tree` from left to right, and its structure.

    Tuples (named ones too), lists and dicts are containers; anything else is a leaf.
    """
    leaves: list[Any] = []

    def walk(x: Any) -> Spec:
        cls = type(x)
        if cls is dict:
            return Branch(cls, tuple(walk(v) for v in x.values()), tuple(x))
        if cls is tuple or cls is list or (isinstance(x, tuple) and hasattr(cls, "_fields")):
            return Branch(cls, tuple(walk(v) for v in x))
        leaves.append(x)
        return Leaf(len(leaves) - 1)

    return leaves, walk(tree)


def unflatten(spec: Spec, leaves: list[Any]) -> Any:
    """The structure with `leaves` in place."""
    if isinstance(spec, Leaf):
        return leaves[spec.index]
    children: Iterator[Any] = (unflatten(c, leaves) for c in spec.children)
    if spec.keys is not None:
        return dict(zip(spec.keys, children, strict=True))
    if spec.cls is tuple or spec.cls is list:
        return spec.cls(children)
    return spec.cls(*children)
