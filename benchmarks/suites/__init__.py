"""A suite is a module with `LIBRARIES` (the subject first), `CASES` (names in order) and
`cases(library, module)`, which builds those that a library has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A statement to time, and a function that builds the names it uses."""

    statement: str
    names: Callable[[], dict[str, Any]]
