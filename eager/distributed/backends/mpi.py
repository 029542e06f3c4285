"""The backend "mpi": mpi4py on whatever MPI library it was built for.

Ranks are those of MPI.COMM_WORLD: start the program with mpirun or srun.  Memory of tensors is
given to MPI as it is; only strided tensors, float16 and bfloat16 (which are combined in float32)
are copied.

What MPI does not have: time-outs (a rank that hangs is waited for), Ctrl-C inside a call, and the
check that ranks made the same call.  When a rank dies, mpirun ends the job.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import eager
from eager import Tensor
from eager._C import comm as _native
from eager.distributed.backends.base import Backend, Buffer, CallWork, Engine, Plan, ReduceOp, Work
from eager.distributed.backends.host import CallPlan, HostBuffer, Lane
from eager.distributed.errors import DistributedError
from eager.dtypes import DType
from eager.errors import ArgumentError, DTypeError, helpful

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: there is no MPI library to load
    raise helpful(
        DistributedError, "init_process_group", 'backend "mpi" needs mpi4py and an MPI library',
        "both", str(error), "apt install openmpi-bin; pip install 'eager-jit[mpi]'",
    ) from error  # fmt: skip

__all__ = ["MPIBackend", "MPIEngine"]

prepare_target = _native.prepare_target

_TYPES = {
    "float32": MPI.FLOAT, "float64": MPI.DOUBLE, "int8": MPI.INT8_T, "uint8": MPI.UINT8_T,
    "int16": MPI.INT16_T, "int32": MPI.INT32_T, "int64": MPI.INT64_T, "bool": MPI.C_BOOL,
}  # fmt: skip
_OPS = {
    ReduceOp.SUM: MPI.SUM, ReduceOp.AVG: MPI.SUM, ReduceOp.MIN: MPI.MIN, ReduceOp.MAX: MPI.MAX,
    ReduceOp.PRODUCT: MPI.PROD,
}  # fmt: skip
_LOGICAL = {
    ReduceOp.SUM: MPI.LOR, ReduceOp.MAX: MPI.LOR, ReduceOp.MIN: MPI.LAND,
    ReduceOp.PRODUCT: MPI.LAND,
}  # fmt: skip


@contextmanager
def _errors(op: str) -> Iterator[None]:
    """Turns MPI's exceptions into ours."""
    try:
        yield
    except MPI.Exception as error:
        raise helpful(DistributedError, op, "MPI reports an error", "success",
                      str(error)) from error  # fmt: skip


def _memory(tensor: Tensor) -> MPI.memory:
    nbytes = tensor.numel() * tensor.dtype.itemsize
    return MPI.memory.fromaddress(tensor.data_ptr(), nbytes)


def _spec(tensor: Tensor) -> Any:
    """A contiguous tensor's memory as bytes; mpi4py finds the count of each rank's part."""
    return [_memory(tensor), MPI.BYTE]


def _typed(tensor: Tensor) -> Any:
    """The same with its element type."""
    return [_memory(tensor), _TYPES[tensor.dtype.name]]


def _copy(target: Tensor, source: Tensor) -> None:
    """Copies unless both are the same memory."""
    if target.data_ptr() != source.data_ptr():
        with eager.no_grad():
            target.copy_(source)


class MPIBackend(Backend):
    """See `Backend`."""

    name = "mpi"

    def __init__(self, communicator: MPI.Intracomm) -> None:
        self._comm: MPI.Intracomm | None = communicator
        self.rank, self.size = communicator.Get_rank(), communicator.Get_size()
        self._lane = Lane("eager-mpi")

    @property
    def comm(self) -> MPI.Intracomm:
        """The communicator; DistributedError after `close`."""
        if self._comm is None:
            raise helpful(DistributedError, "collective", "the group was destroyed",
                          "a living group", "one that was destroyed")  # fmt: skip
        return self._comm

    # --- what the collectives share --------------------------------------------------------------

    def _run(
        self, op: str, async_op: bool, call: Callable[[MPI.Intracomm], object],
        written: Tensor | None, packed: Tensor | None,
    ) -> Work | None:  # fmt: skip
        """Calls `call`, then copies `packed` to `written` if that is other memory."""
        comm = self.comm
        if written is not None:
            prepare_target(op, written)

        def whole() -> None:
            with _errors(op):
                call(comm)
            if written is not None and packed is not None:
                _copy(written, packed)

        value = None if written is None else [written]
        return self._lane.run(whole, async_op, value)

    @staticmethod
    def _check(op: str, reduction: ReduceOp, *tensors: Tensor) -> None:
        if not isinstance(reduction, ReduceOp) or reduction > ReduceOp.PRODUCT:
            raise helpful(ArgumentError, op, "there is no such reduction",
                          "ReduceOp.SUM, AVG, PRODUCT, MIN or MAX", repr(reduction))  # fmt: skip
        if reduction == ReduceOp.AVG and not tensors[0].dtype.is_floating_point:
            raise helpful(DTypeError, op, "no average of this element type",
                          "a floating dtype for avg", str(tensors[0].dtype),
                          "sum, and divide")  # fmt: skip

    @staticmethod
    def _wide(tensor: Tensor) -> Tensor:
        """What MPI combines: the tensor's own memory where it can."""
        detached = tensor.detach()
        if detached.dtype in (eager.float16, eager.bfloat16):
            return detached.float()
        return detached.contiguous()

    def _reduce_to(self, comm: MPI.Intracomm, tensor: Tensor, op: ReduceOp, root: int) -> None:
        """Reduces in place at root."""
        how = (_LOGICAL if tensor.dtype is eager.bool else _OPS)[op]
        if self.rank == root:
            comm.Reduce(MPI.IN_PLACE, _typed(tensor), how, root)
            if op == ReduceOp.AVG:
                tensor.div_(self.size)
        else:
            comm.Reduce(_typed(tensor), None, how, root)

    def _reduce_all(self, comm: MPI.Intracomm, tensor: Tensor, op: ReduceOp) -> None:
        """Reduces in place everywhere.  MPI promises equal bits on all ranks only where the order
        of operands does not matter; else one rank's result is sent to all."""
        if tensor.dtype.is_floating_point and op not in (ReduceOp.MIN, ReduceOp.MAX):
            self._reduce_to(comm, tensor, op, 0)
            comm.Bcast(_spec(tensor), 0)
        else:
            how = (_LOGICAL if tensor.dtype is eager.bool else _OPS)[op]
            comm.Allreduce(MPI.IN_PLACE, _typed(tensor), how)

    # --- collectives -----------------------------------------------------------------------------

    def all_reduce(self, tensor: Tensor, op: ReduceOp, async_op: bool = False) -> Work | None:
        """See `Backend.all_reduce`."""
        self._check("all_reduce", op, tensor)
        wide = self._wide(tensor)
        return self._run("all_reduce", async_op, lambda c: self._reduce_all(c, wide, op), tensor,
                         wide)  # fmt: skip

    def reduce(
        self, tensor: Tensor, root: int, op: ReduceOp, async_op: bool = False
    ) -> Work | None:
        """See `Backend.reduce`."""
        self._check("reduce", op, tensor)
        wide = self._wide(tensor)
        target = tensor if self.rank == root else None
        return self._run("reduce", async_op, lambda c: self._reduce_to(c, wide, op, root), target,
                         wide)  # fmt: skip

    def reduce_scatter(
        self, output: Tensor, input: Tensor, op: ReduceOp, async_op: bool = False
    ) -> Work | None:
        """See `Backend.reduce_scatter`."""
        self._check("reduce_scatter", op, output)
        wide = self._wide(input)
        result = eager.empty(output.shape, dtype=wide.dtype)
        how = (_LOGICAL if wide.dtype is eager.bool else _OPS)[op]

        def call(comm: MPI.Intracomm) -> None:
            comm.Reduce_scatter_block(_typed(wide), _typed(result), how)
            if op == ReduceOp.AVG:
                result.div_(self.size)

        return self._run("reduce_scatter", async_op, call, output, result)

    def all_gather(self, output: Tensor, input: Tensor, async_op: bool = False) -> Work | None:
        """See `Backend.all_gather`."""
        packed, given = output.detach().contiguous(), self._apart(input, output)
        return self._run(
            "all_gather", async_op, lambda c: c.Allgather(_spec(given), _spec(packed)), output,
            packed,
        )  # fmt: skip

    @staticmethod
    def _apart(input: Tensor, output: Tensor) -> Tensor:
        """`input`, packed, in memory that is not a part of `output`: MPI forbids aliases."""
        packed = input.detach().contiguous()
        begin, end = output.data_ptr(), output.data_ptr() + output.numel() * output.dtype.itemsize
        return packed.clone() if begin <= packed.data_ptr() < end else packed

    def broadcast(self, tensor: Tensor, root: int, async_op: bool = False) -> Work | None:
        """See `Backend.broadcast`."""
        packed = tensor.detach().contiguous()
        target = None if self.rank == root else tensor
        return self._run("broadcast", async_op, lambda c: c.Bcast(_spec(packed), root), target,
                         packed)  # fmt: skip

    def gather(
        self, output: Tensor | None, input: Tensor, root: int, async_op: bool = False
    ) -> Work | None:
        """See `Backend.gather`."""
        given = input.detach().contiguous()
        packed = None if output is None else output.detach().contiguous()
        into = None if packed is None else _spec(packed)
        return self._run("gather", async_op, lambda c: c.Gather(_spec(given), into, root), output,
                         packed)  # fmt: skip

    def scatter(
        self, output: Tensor, input: Tensor | None, root: int, async_op: bool = False
    ) -> Work | None:
        """See `Backend.scatter`."""
        given = None if input is None else input.detach().contiguous()
        packed = output.detach().contiguous()

        def call(comm: MPI.Intracomm) -> None:
            comm.Scatter(None if given is None else _spec(given), _spec(packed), root)

        return self._run("scatter", async_op, call, output, packed)

    def all_to_all(
        self, output: Tensor, input: Tensor, received: Sequence[int], sent: Sequence[int],
        async_op: bool = False,
    ) -> Work | None:  # fmt: skip
        """See `Backend.all_to_all`."""
        given, packed = input.detach().contiguous(), output.detach().contiguous()

        def cut(tensor: Tensor, counts: Sequence[int]) -> Any:
            return [_memory(tensor), [n * tensor.dtype.itemsize for n in counts], MPI.BYTE]

        return self._run(
            "all_to_all", async_op,
            lambda c: c.Alltoallv(cut(given, sent), cut(packed, received)), output, packed,
        )  # fmt: skip

    def barrier(self, async_op: bool = False) -> Work | None:
        """See `Backend.barrier`."""
        return self._run("barrier", async_op, lambda c: c.Barrier(), None, None)

    # --- between two ranks -----------------------------------------------------------------------

    def send(self, tensor: Tensor, to: int, tag: int = 0) -> None:
        """See `Backend.send`."""
        with _errors("send"):
            self.comm.Send(_spec(tensor.detach().contiguous()), to, tag)

    def recv(self, tensor: Tensor, source: int | None, tag: int = 0) -> int:
        """See `Backend.recv`."""
        prepare_target("recv", tensor)
        packed, status = tensor.detach().contiguous(), MPI.Status()
        with _errors("recv"):
            self.comm.Recv(_spec(packed), MPI.ANY_SOURCE if source is None else source, tag, status)
        _copy(tensor, packed)
        return status.Get_source()

    def isend(self, tensor: Tensor, to: int, tag: int = 0) -> Work:
        """See `Backend.isend`."""
        packed = tensor.detach().contiguous()
        with _errors("isend"):
            request = self.comm.Isend(_spec(packed), to, tag)
        return self._request("isend", request, packed, None)

    def irecv(self, tensor: Tensor, source: int | None, tag: int = 0) -> Work:
        """See `Backend.irecv`."""
        prepare_target("irecv", tensor)
        packed = tensor.detach().contiguous()
        with _errors("irecv"):
            request = self.comm.Irecv(
                _spec(packed), MPI.ANY_SOURCE if source is None else source, tag
            )
        return self._request("irecv", request, packed, tensor)

    @staticmethod
    def _request(op: str, request: MPI.Request, packed: Tensor, target: Tensor | None) -> Work:
        def finish() -> None:
            with _errors(op):
                request.Wait()
            if target is not None:
                _copy(target, packed)

        return CallWork(finish, request.Test, [packed if target is None else target])

    # --- static memory ---------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Buffer:
        """See `Backend.allocate`."""
        return HostBuffer(nbytes)

    def plan_all_reduce(
        self, buffer: Buffer, offset: int, count: int, dtype: DType, op: ReduceOp
    ) -> Plan:
        """See `Backend.plan_all_reduce`."""
        tensor = buffer.tensor((count,), dtype, offset)
        return CallPlan(self._lane, lambda: _done(self.all_reduce(tensor, op)))

    def plan_reduce_scatter(
        self, buffer: Buffer, offset: int, count: int, dtype: DType, op: ReduceOp
    ) -> Plan:
        """See `Backend.plan_reduce_scatter`."""
        whole = buffer.tensor((self.size, count), dtype, offset)
        return CallPlan(
            self._lane, lambda: _done(self.reduce_scatter(whole[self.rank], whole.clone(), op))
        )

    def plan_all_gather(self, buffer: Buffer, offset: int, count: int, dtype: DType) -> Plan:
        """See `Backend.plan_all_gather`."""
        whole = buffer.tensor((self.size, count), dtype, offset)
        return CallPlan(self._lane, lambda: _done(self.all_gather(whole, whole[self.rank])))

    def stats(self) -> dict[str, int]:
        """See `Backend.stats`: MPI tells nothing."""
        return dict.fromkeys(("puts", "put_bytes", "direct_bytes", "staged_bytes", "sleeps"), 0)

    def close(self) -> None:
        """See `Backend.close`.  MPI frees communicators collectively, so it is left to its end."""
        self._comm = None
        self._lane.close()


def _done(work: Work | None) -> None:
    assert work is None


class MPIEngine(Engine):
    """All ranks of MPI.COMM_WORLD."""

    name = "mpi"

    def __init__(self) -> None:
        self._world = MPI.COMM_WORLD
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise helpful(DistributedError, "init_process_group",
                          "the MPI library runs without support for threads",
                          "MPI_THREAD_MULTIPLE", "less",
                          "leave mpi4py.rc.threads alone")  # fmt: skip

    def group(self, ranks: Sequence[int], key: str, timeout: float) -> Backend:
        """See `Engine.group`."""
        del timeout  # MPI has none
        with _errors("new_group"):
            members = self._world.Get_group().Incl(list(ranks))
            # The tag keeps groups apart that are made at the same time.
            return MPIBackend(self._world.Create_group(members, zlib.crc32(key.encode()) & 0x7FFF))

    def peers(self) -> list[dict[str, Any]]:
        """See `Engine.peers`."""
        library = MPI.Get_library_version().partition(",")[0]
        return [
            {"rank": r, "transport": "self" if r == self.rank else "mpi", "reason": library,
             "host": None}
            for r in range(self.size)
        ]  # fmt: skip
