"""PyTorch's names for the order of a tensor's elements in memory.

Results are laid out in rows whatever the format asks for, so these names serve scripts that spell
the default out; `channels_last` is an error where it is used.
"""

from __future__ import annotations

import enum

__all__ = ["channels_last", "contiguous_format", "memory_format", "preserve_format"]


class memory_format(enum.Enum):  # noqa: N801  (PyTorch's name)
    """An order of elements in memory."""

    contiguous_format = 0
    preserve_format = 1
    channels_last = 2

    def __repr__(self) -> str:
        return f"eager.{self.name}"


contiguous_format = memory_format.contiguous_format
preserve_format = memory_format.preserve_format
channels_last = memory_format.channels_last
