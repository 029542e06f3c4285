"""The package's own engine: csrc/comm, over verbs, shared memory or TCP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eager import Tensor
from eager._C import comm
from eager.distributed.backends.base import (
    Backend,
    Buffer,
    Engine,
    Plan,
    ReduceOp,
    Work,
    number,
)
from eager.distributed.errors import Timeout
from eager.dtypes import DType
from eager.errors import ArgumentError, helpful

if TYPE_CHECKING:
    from eager.distributed.rendezvous import Meeting

__all__ = ["RDMABackend", "RDMAEngine"]

_all_reduce = comm.all_reduce


class RDMAWork(Work):
    """Wraps the library's handle."""

    def __init__(self, native: comm.Work) -> None:
        self._native = native

    def wait(self, timeout: timedelta | float | None = None) -> bool:
        """See `Work.wait`."""
        limit = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        if not self._native.wait(-1.0 if limit is None else limit):
            raise helpful(Timeout, "Work.wait", "the operation has not ended",
                          f"an end within {limit:g} s", "it still runs")  # fmt: skip
        return True

    def is_completed(self) -> bool:
        """See `Work.is_completed`."""
        return self._native.done()

    def exception(self) -> BaseException | None:
        """See `Work.exception`."""
        return self._native.exception()


def _work(native: comm.Work | None) -> Work | None:
    return None if native is None else RDMAWork(native)


class _Plan:
    """A plan of the library; see `base.Plan`."""

    def __init__(self, native: comm.Plan) -> None:
        self._native = native
        self.algorithm = native.algorithm
        self.address = native.address

    def start(self) -> None:
        self._native.start()

    def finish(self) -> None:
        self._native.finish()

    def run(self) -> None:
        self._native.run()

    def run_async(self) -> Work:
        return RDMAWork(self._native.run_async())


class RDMABackend(Backend):
    """See `Backend`."""

    name = "rdma"

    def __init__(self, native: comm.Group) -> None:
        self.native = native
        self.rank = native.rank
        self.size = native.size
        self.address = native.address

    def all_reduce(self, tensor: Tensor, op: ReduceOp, async_op: bool = False) -> Work | None:
        """See `Backend.all_reduce`."""
        if not async_op:
            _all_reduce(self.native, tensor, op)
            return None
        work = RDMAWork(self.native.all_reduce_async(tensor, op))
        work.result_value = [tensor]
        return work

    def reduce(
        self, tensor: Tensor, root: int, op: ReduceOp, async_op: bool = False
    ) -> Work | None:
        """See `Backend.reduce`."""
        return _work(self.native.reduce(tensor, op, root, async_op))

    def reduce_scatter(
        self, output: Tensor, input: Tensor, op: ReduceOp, async_op: bool = False
    ) -> Work | None:
        """See `Backend.reduce_scatter`."""
        return _work(self.native.reduce_scatter(output, input, op, async_op))

    def all_gather(self, output: Tensor, input: Tensor, async_op: bool = False) -> Work | None:
        """See `Backend.all_gather`."""
        return _work(self.native.all_gather(output, input, async_op))

    def broadcast(self, tensor: Tensor, root: int, async_op: bool = False) -> Work | None:
        """See `Backend.broadcast`."""
        return _work(self.native.broadcast(tensor, root, async_op))

    def gather(
        self, output: Tensor | None, input: Tensor, root: int, async_op: bool = False
    ) -> Work | None:
        """See `Backend.gather`."""
        return _work(self.native.gather(output, input, root, async_op))

    def scatter(
        self, output: Tensor, input: Tensor | None, root: int, async_op: bool = False
    ) -> Work | None:
        """See `Backend.scatter`."""
        return _work(self.native.scatter(output, input, root, async_op))

    def all_to_all(
        self, output: Tensor, input: Tensor, received: Sequence[int], sent: Sequence[int],
        async_op: bool = False,
    ) -> Work | None:  # fmt: skip
        """See `Backend.all_to_all`."""
        return _work(self.native.all_to_all(output, input, received, sent, async_op))

    def barrier(self, async_op: bool = False) -> Work | None:
        """See `Backend.barrier`."""
        return _work(self.native.barrier(async_op))

    def send(self, tensor: Tensor, to: int, tag: int = 0) -> None:
        """See `Backend.send`."""
        self.native.send(tensor, to, tag)

    def recv(self, tensor: Tensor, source: int | None, tag: int = 0) -> int:
        """See `Backend.recv`."""
        return self.native.recv(tensor, -1 if source is None else source, tag)

    def isend(self, tensor: Tensor, to: int, tag: int = 0) -> Work:
        """See `Backend.isend`."""
        return RDMAWork(self.native.isend(tensor, to, tag))

    def irecv(self, tensor: Tensor, source: int | None, tag: int = 0) -> Work:
        """See `Backend.irecv`."""
        return RDMAWork(self.native.irecv(tensor, -1 if source is None else source, tag))

    def allocate(self, nbytes: int) -> Buffer:
        """See `Backend.allocate`."""
        return self.native.allocate(nbytes)

    def plan_all_reduce(
        self, buffer: Buffer, offset: int, count: int, dtype: DType, op: ReduceOp
    ) -> Plan:
        """See `Backend.plan_all_reduce`."""
        return _Plan(self.native.plan_all_reduce(_native(buffer), offset, count, dtype, op))

    def plan_reduce_scatter(
        self, buffer: Buffer, offset: int, count: int, dtype: DType, op: ReduceOp
    ) -> Plan:
        """See `Backend.plan_reduce_scatter`."""
        return _Plan(self.native.plan_reduce_scatter(_native(buffer), offset, count, dtype, op))

    def plan_all_gather(self, buffer: Buffer, offset: int, count: int, dtype: DType) -> Plan:
        """See `Backend.plan_all_gather`."""
        return _Plan(self.native.plan_all_gather(_native(buffer), offset, count, dtype))

    def open_window(self, nbytes: int) -> comm.Window:
        """See `Backend.open_window`."""
        return self.native.open_window(nbytes)

    def lost(self) -> int:
        """See `Backend.lost`."""
        return self.native.lost()

    def stats(self) -> dict[str, int]:
        """See `Backend.stats`."""
        return self.native.stats()

    def info(self) -> dict[str, Any]:
        """The algorithm that the table says for all_reduce, by size in bytes."""
        sizes = [1 << k for k in range(6, 28, 3)]
        return {"all_reduce": {size: self.native.algorithm(size) for size in sizes}}

    def set_timeout(self, seconds: float) -> None:
        """See `Backend.set_timeout`."""
        self.native.set_timeout(seconds)

    def close(self) -> None:
        """See `Backend.close`."""
        self.native.close()


def _native(buffer: Buffer) -> comm.Buffer:
    if not isinstance(buffer, comm.Buffer):
        raise helpful(ArgumentError, "plan", "not a buffer of this backend",
                      "what allocate returned", type(buffer).__name__)  # fmt: skip
    return buffer


class RDMAEngine(Engine):
    """The mesh that joins all ranks.

    Tensors of 256 KiB and more that are made after this lie in memory which the other ranks of the
    host map, so that collectives read and write them where they are: an all_reduce of 16 MB then
    copies nothing.  Shared memory usually has small pages, for which operations that only stream
    through memory pay 5 to 25% on tensors above 4 MiB (measured: additions; products under 2%).
    EAGER_COMM_SHARED_TENSORS=0 turns it off; collectives then go through scratch memory.
    Other variables: see `eager.distributed`.
    """

    name = "rdma"

    def __init__(self, meeting: Meeting, timeout: float) -> None:
        self.rank, self.size = meeting.rank, meeting.size
        path = os.environ.get("EAGER_COMM_TABLE")
        self._table = Path(path).read_text() if path else ""
        self._store = meeting.store.native
        self._prefix = meeting.prefix
        self._mesh = comm.Mesh(
            self._store, rank=meeting.rank, size=meeting.size, prefix=f"{meeting.prefix}/mesh",
            secret=meeting.secret, transport=os.environ.get("EAGER_COMM_TRANSPORT", ""),
            address=os.environ.get("EAGER_COMM_ADDRESS", ""),
            devices=os.environ.get("EAGER_COMM_DEVICES", ""), timeout=timeout,
            heartbeat=number("EAGER_COMM_HEARTBEAT", 10),
        )  # fmt: skip
        if os.environ.get("EAGER_COMM_SHARED_TENSORS", "1") != "0":
            self._mesh.share_tensors()

    def group(self, ranks: Sequence[int], key: str, timeout: float) -> Backend:
        """See `Engine.group`."""
        algorithm = os.environ.get("EAGER_COMM_ALGORITHM", "")
        name = f"{self._prefix}/group/{key}"
        return RDMABackend(
            comm.Group(self._mesh, self._store, list(ranks), name, timeout, algorithm, self._table)
        )

    def peers(self) -> list[dict[str, Any]]:
        """See `Engine.peers`."""
        mesh = self._mesh
        return [
            {"rank": r, "transport": mesh.transport(r), "reason": mesh.reason(r),
             "host": mesh.host(r)}
            for r in range(self.size)
        ]  # fmt: skip

    def close(self) -> None:
        """See `Engine.close`."""
        self._mesh.close()
