"""PyTorch's names for the order of a tensor's elements in memory.

Ops lay their results out in rows.  `Tensor.to`, `clone` and `contiguous` know `channels_last`, by
which the channels of each pixel of images (N, C, H, W) lie side by side.
"""

from __future__ import annotations

import enum

__all__ = ["channels_last", "contiguous_format", "memory_format", "preserve_format"]


class memory_format(enum.Enum):
    """An order of elements in memory."""

    contiguous_format = 0
    preserve_format = 1
    channels_last = 2

    def __repr__(self) -> str:
        return f"eager.{self.name}"


contiguous_format = memory_format.contiguous_format
preserve_format = memory_format.preserve_format
channels_last = memory_format.channels_last
