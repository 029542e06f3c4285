"""The engines beneath `eager.distributed`: see `base`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eager.distributed.backends.base import Engine
from eager.distributed.errors import DistributedError
from eager.errors import ArgumentError, helpful

if TYPE_CHECKING:
    from eager.distributed.rendezvous import Meeting

NAMES = ("rdma", "mpi", "nccl")


def canonical(name: str | None) -> str:
    """One of NAMES.

    Raises:
        ArgumentError: it is none of them.
    """
    chosen = (name or "rdma").lower()
    if chosen not in NAMES:
        raise helpful(ArgumentError, "init_process_group", "there is no such backend",
                      ", ".join(NAMES), repr(name),
                      "rdma: it picks verbs, shared memory or TCP itself")  # fmt: skip
    return chosen


def make(name: str, meeting: Meeting | None, timeout: float) -> Engine:
    """The engine, joined with all ranks.  `meeting` is None for mpi, which has its own."""
    if name == "mpi":
        from eager.distributed.backends.mpi import MPIEngine

        return MPIEngine()
    if meeting is None:
        raise helpful(DistributedError, "init_process_group", "the ranks have no place to meet",
                      "a store", "none")  # fmt: skip
    if name == "nccl":
        from eager.distributed.backends.nccl import NCCLEngine

        return NCCLEngine(meeting)
    from eager.distributed.backends.rdma import RDMAEngine

    return RDMAEngine(meeting, timeout)
