"""One-sided writes: memory of every rank that the others write into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eager import Tensor
from eager.distributed.process_group import ProcessGroup, open_window, resolve
from eager.dtypes import DType
from eager.errors import ArgumentError, helpful

__all__ = ["Window"]


class Window:
    """`nbytes` of zeroed memory on every rank of a group, into which the others write one-sided:
    by RDMA, through shared memory or over TCP.  Nothing is copied in between, and the receiver
    does nothing.  Making one is collective.

    Raises:
        DistributedError: the group's backend has no one-sided writes ("mpi", "nccl").
    """

    def __init__(self, nbytes: int, group: ProcessGroup | None = None) -> None:
        if nbytes < 0:
            raise helpful(ArgumentError, "Window", "not a size", "at least 0 bytes",
                          str(nbytes))  # fmt: skip
        self._group = resolve(group, "Window")
        self._native = open_window(self._group, nbytes)
        self.nbytes = nbytes

    def tensor(self, shape: Sequence[int], dtype: DType, offset: int = 0) -> Tensor:
        """This rank's memory from `offset` (bytes) as a tensor, which keeps the window alive.

        Raises:
            ArgumentError: it does not fit, or the offset is no multiple of the element size.
        """
        result: Tensor = self._native.tensor(tuple(shape), dtype, offset)
        return result

    def put(self, tensor: Tensor, dst: int, offset: int = 0) -> None:
        """Writes a contiguous tensor to `offset` (bytes) of the window of rank `dst` of the job,
        and counts one arrival there.  When it returns the tensor may be changed.

        Raises:
            ArgumentError: it does not fit, or the tensor is not contiguous.
            PeerLost: the rank is gone.
        """
        self._native.put(tensor, self._place(dst, "Window.put"), offset)

    def signal(self, dst: int) -> None:
        """Counts one arrival at rank `dst`, after everything this rank has put there."""
        self._native.signal(self._place(dst, "Window.signal"))

    def wait(self, src: int, count: int = 1) -> None:
        """Waits for `count` arrivals from rank `src` beyond those waited for before.  What it put
        is then there.

        Raises:
            PeerLost: the rank is gone, or nothing arrived within the group's time-out.
        """
        self._native.wait(self._place(src, "Window.wait"), count)

    def _place(self, rank: Any, op: str) -> int:
        return self._group.group_rank(rank, op)
