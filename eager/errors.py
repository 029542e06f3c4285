"""The exceptions the package raises.

Every message names the op, what was expected and what was given, one per line::

    matmul: the inner dimensions differ
      expected: a second operand with 3 rows
      given: shapes (2, 3) and (4, 5)
      try: transpose one of them

Each class also derives from the built-in exception a Python programmer would look for.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "AutogradError",
    "DTypeError",
    "DeviceError",
    "EagerError",
    "IndexOutOfRange",
    "OutOfMemoryError",
    "SerializationError",
    "ShapeError",
    "VersionError",
    "helpful",
]


class EagerError(RuntimeError):
    """The base of all errors of this package."""


class ShapeError(EagerError, ValueError):
    """Shapes that do not fit each other or the op."""


class DTypeError(EagerError, TypeError):
    """A dtype the op is not defined for."""


class IndexOutOfRange(EagerError, IndexError):
    """An index or a dimension outside its range."""


class DeviceError(EagerError):
    """Tensors on different devices, or data asked of a device that holds none."""


class ArgumentError(EagerError, ValueError):
    """An argument whose value makes no sense for the call."""


class AutogradError(EagerError):
    """A gradient that cannot be computed."""


class VersionError(AutogradError):
    """A value that backward needs was changed in place."""


class OutOfMemoryError(EagerError, MemoryError):
    """Memory could not be allocated."""


class SerializationError(EagerError, ValueError):
    """A file that is corrupt, truncated, or not what it is taken for."""


def helpful(
    cls: type[EagerError], op: str, problem: str, expected: str, given: str, hint: str = ""
) -> EagerError:
    """An error of class ``cls`` with the lines described above; raise what it returns."""
    text = f"{op}: {problem}\n  expected: {expected}\n  given: {given}"
    return cls(f"{text}\n  try: {hint}" if hint else text)
