"""The backend "nccl": NVIDIA's library through CuPy, one GPU per rank.

Operands are arrays that speak ``__cuda_array_interface__`` (CuPy's, for one), which NCCL reads and
writes where they lie, in the order of CuPy's current stream; or tensors of this package, which
live on the CPU and are copied to the GPU and back.  What NCCL lacks is done with what it has:
bfloat16 and int16 are combined as float32 and int32, bool as uint8.

Not there: tags, receiving from any rank, time-outs, and the check that ranks made the same call.
`isend` and `irecv` begin when one of them is waited for, together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import eager
from eager import Tensor
from eager._C import comm as _native
from eager.distributed.backends.base import Backend, Buffer, CallWork, Engine, Plan, ReduceOp, Work
from eager.distributed.backends.host import CallPlan, HostBuffer, Lane
from eager.distributed.errors import DistributedError
from eager.dtypes import DType
from eager.errors import ArgumentError, DTypeError, helpful

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eager.distributed.rendezvous import Meeting

__all__ = ["NCCLBackend", "NCCLEngine"]

# How elements are combined: the GPU's dtype, and NCCL's name of it.
_WIDE = {
    "float32": ("float32", "NCCL_FLOAT32"), "float64": ("float64", "NCCL_FLOAT64"),
    "float16": ("float16", "NCCL_FLOAT16"), "bfloat16": ("float32", "NCCL_FLOAT32"),
    "int8": ("int8", "NCCL_INT8"), "uint8": ("uint8", "NCCL_UINT8"),
    "int16": ("int32", "NCCL_INT32"), "int32": ("int32", "NCCL_INT32"),
    "int64": ("int64", "NCCL_INT64"), "bool": ("uint8", "NCCL_UINT8"),
}  # fmt: skip
_OPS = {
    ReduceOp.SUM: "NCCL_SUM", ReduceOp.AVG: "NCCL_SUM", ReduceOp.MIN: "NCCL_MIN",
    ReduceOp.MAX: "NCCL_MAX", ReduceOp.PRODUCT: "NCCL_PROD",
}  # fmt: skip


def _library() -> tuple[Any, Any]:
    """CuPy, and its NCCL module.

    Raises:
        DistributedError: CuPy, NCCL or a GPU is missing.
    """
    missing = ""
    try:
        import cupy
        from cupy.cuda import nccl

        if not getattr(nccl, "available", True):
            missing = "this CuPy was built without NCCL"
        elif cupy.cuda.runtime.getDeviceCount() < 1:
            missing = "there is no GPU"
        else:
            return cupy, nccl
    except ImportError as error:
        missing = str(error)
    except Exception as error:  # CUDARuntimeError, which needs CuPy to be named
        missing = f"there is no usable GPU: {error}"
    raise helpful(
        DistributedError, "init_process_group", 'backend "nccl" needs CuPy, NCCL and a GPU',
        "all three", missing, "pip install 'eager-jit[cuda13]'; backend=\"rdma\" needs none",
    )  # fmt: skip


def _is_device(x: Any) -> bool:
    return not isinstance(x, Tensor) and hasattr(x, "__cuda_array_interface__")


def _dtype_name(x: Any) -> str:
    return x.dtype.name if isinstance(x, Tensor) else str(x.dtype)


class NCCLBackend(Backend):
    """See `Backend`."""

    name = "nccl"

    def __init__(self, communicator: Any, rank: int, size: int, modules: tuple[Any, Any]) -> None:
        self.rank, self.size = rank, size
        self._open: Any = communicator
        self._cupy, self._nccl = modules
        self._lane = Lane("eager-nccl")
        self._queue: list[Callable[[], None]] = []

    @property
    def _comm(self) -> Any:
        if self._open is None:
            raise helpful(DistributedError, "collective", "the group was destroyed",
                          "a living group", "one that was destroyed")  # fmt: skip
        return self._open

    # --- operands --------------------------------------------------------------------------------

    def _load(self, x: Any, dtype: str | None) -> Any:
        """A contiguous array on the GPU, as `dtype` (None: as bytes)."""
        cupy = self._cupy
        if isinstance(x, Tensor):
            host = x.detach().contiguous()
            if host.dtype is eager.bfloat16 and dtype is not None:
                host = host.float()
            # bytes of NumPy's: CuPy has no bfloat16
            values = host.numpy().reshape(-1)
            array = cupy.asarray(values.view("uint8") if dtype is None else values)
        else:
            array = cupy.ascontiguousarray(cupy.asarray(x))
        return array.reshape(-1).view("uint8") if dtype is None else array.astype(dtype, copy=False)

    def _store(self, x: Any, array: Any, moved: bool = False) -> None:
        """Puts the result into `x`, unless it is there already; `moved`: it is bytes."""
        cupy = self._cupy
        if _is_device(x):
            target = cupy.asarray(x)
            if target.data.ptr != array.data.ptr:
                whole = array.view(target.dtype) if moved else array
                target[...] = whole.reshape(target.shape).astype(target.dtype, copy=False)
            return
        values = array.get().reshape(-1)
        if moved:
            values = values.view(x.detach().reshape(-1)[:0].numpy().dtype)
        with eager.no_grad():
            x.copy_(eager.from_numpy(values).reshape(x.shape).to(x.dtype))

    @staticmethod
    def _target(op: str, x: Any) -> None:
        if not _is_device(x):
            _native.prepare_target(op, x)

    def _reduction(self, op: str, reduction: ReduceOp, x: Any) -> tuple[str, int, int]:
        """The dtype to combine in, and NCCL's numbers of it and of the operation."""
        name = _dtype_name(x)
        if name not in _WIDE:
            raise helpful(DTypeError, op, "NCCL has no such element type", ", ".join(_WIDE), name)
        if not isinstance(reduction, ReduceOp) or reduction not in _OPS:
            raise helpful(ArgumentError, op, "there is no such reduction",
                          "ReduceOp.SUM, AVG, PRODUCT, MIN or MAX", repr(reduction))  # fmt: skip
        if reduction == ReduceOp.AVG and "float" not in name:
            raise helpful(DTypeError, op, "no average of this element type",
                          "a floating dtype for avg", name, "sum, and divide")  # fmt: skip
        if name == "bool":
            either = reduction in (ReduceOp.SUM, ReduceOp.MAX)
            reduction = ReduceOp.MAX if either else ReduceOp.MIN
        dtype, kind = _WIDE[name]
        return dtype, getattr(self._nccl, kind), getattr(self._nccl, _OPS[reduction])

    @property
    def _stream(self) -> int:
        return int(self._cupy.cuda.get_current_stream().ptr)

    @contextmanager
    def _together(self) -> Iterator[None]:
        self._nccl.groupStart()
        try:
            yield
        finally:
            self._nccl.groupEnd()

    def _run(self, async_op: bool, call: Callable[[], None], value: Any) -> Work | None:
        """On the calling thread: NCCL's calls return at once.  Work waits for the stream."""
        call()
        if not async_op:
            return None
        event = self._cupy.cuda.Event()
        event.record()
        return CallWork(event.synchronize, lambda: bool(event.done), value)

    # --- collectives -----------------------------------------------------------------------------

    def all_reduce(self, tensor: Any, op: ReduceOp, async_op: bool = False) -> Work | None:
        """See `Backend.all_reduce`."""
        dtype, kind, how = self._reduction("all_reduce", op, tensor)
        self._target("all_reduce", tensor)

        def call() -> None:
            x = self._load(tensor, dtype)
            self._comm.allReduce(x.data.ptr, x.data.ptr, x.size, kind, how, self._stream)
            self._store(tensor, self._averaged(x, op))

        return self._run(async_op, call, [tensor])

    def _averaged(self, array: Any, op: ReduceOp) -> Any:
        if op == ReduceOp.AVG:
            array /= self.size
        return array

    def reduce(self, tensor: Any, root: int, op: ReduceOp, async_op: bool = False) -> Work | None:
        """See `Backend.reduce`."""
        dtype, kind, how = self._reduction("reduce", op, tensor)
        if self.rank == root:
            self._target("reduce", tensor)

        def call() -> None:
            x = self._load(tensor, dtype)
            self._comm.reduce(x.data.ptr, x.data.ptr, x.size, kind, how, root, self._stream)
            if self.rank == root:
                self._store(tensor, self._averaged(x, op))

        return self._run(async_op, call, [tensor])

    def reduce_scatter(
        self, output: Any, input: Any, op: ReduceOp, async_op: bool = False
    ) -> Work | None:
        """See `Backend.reduce_scatter`."""
        dtype, kind, how = self._reduction("reduce_scatter", op, input)
        self._target("reduce_scatter", output)

        def call() -> None:
            x = self._load(input, dtype)
            y = self._cupy.empty(x.size // self.size, dtype)
            self._comm.reduceScatter(x.data.ptr, y.data.ptr, y.size, kind, how, self._stream)
            self._store(output, self._averaged(y, op))

        return self._run(async_op, call, [output])

    def all_gather(self, output: Any, input: Any, async_op: bool = False) -> Work | None:
        """See `Backend.all_gather`."""
        self._target("all_gather", output)

        def call() -> None:
            x = self._load(input, None)
            y = self._cupy.empty(x.size * self.size, "uint8")
            bytes_ = self._nccl.NCCL_UINT8
            self._comm.allGather(x.data.ptr, y.data.ptr, x.size, bytes_, self._stream)
            self._store(output, y, True)

        return self._run(async_op, call, [output])

    def broadcast(self, tensor: Any, root: int, async_op: bool = False) -> Work | None:
        """See `Backend.broadcast`."""
        if self.rank != root:
            self._target("broadcast", tensor)

        def call() -> None:
            x = self._load(tensor, None)
            self._comm.bcast(x.data.ptr, x.size, self._nccl.NCCL_UINT8, root, self._stream)
            if self.rank != root:
                self._store(tensor, x, True)

        return self._run(async_op, call, [tensor])

    def gather(
        self, output: Any | None, input: Any, root: int, async_op: bool = False
    ) -> Work | None:
        """See `Backend.gather`."""
        nbytes = self._nbytes(input)
        mine = self.rank == root
        sizes = [nbytes if mine else 0] * self.size
        to_root = [nbytes if r == root else 0 for r in range(self.size)]
        return self._exchange("gather", output, input, sizes, to_root, async_op)

    def scatter(
        self, output: Any, input: Any | None, root: int, async_op: bool = False
    ) -> Work | None:
        """See `Backend.scatter`."""
        nbytes = self._nbytes(output)
        from_root = [nbytes if r == root else 0 for r in range(self.size)]
        sizes = [nbytes if self.rank == root else 0] * self.size
        return self._exchange("scatter", output, input, from_root, sizes, async_op)

    def all_to_all(
        self, output: Any, input: Any, received: Sequence[int], sent: Sequence[int],
        async_op: bool = False,
    ) -> Work | None:  # fmt: skip
        """See `Backend.all_to_all`."""
        item = input.dtype.itemsize
        return self._exchange("all_to_all", output, input, [n * item for n in received],
                              [n * item for n in sent], async_op)  # fmt: skip

    @staticmethod
    def _nbytes(x: Any) -> int:
        count = x.numel() if isinstance(x, Tensor) else x.size
        return int(count * x.dtype.itemsize)

    def _exchange(
        self, op: str, output: Any | None, input: Any | None, received: Sequence[int],
        sent: Sequence[int], async_op: bool,
    ) -> Work | None:  # fmt: skip
        """Bytes to and from every rank, consecutively."""
        if output is not None:
            self._target(op, output)

        def call() -> None:
            x = self._cupy.empty(0, "uint8") if input is None else self._load(input, None)
            y = self._cupy.empty(sum(received), "uint8")
            kind, stream = self._nccl.NCCL_UINT8, self._stream
            # gather sends the whole input to one rank, scatter and all_to_all parts in a row
            begin = end = 0
            with self._together():
                for rank in range(self.size):
                    if sent[rank]:
                        self._comm.send(x.data.ptr + begin, sent[rank], kind, rank, stream)
                    if received[rank]:
                        self._comm.recv(y.data.ptr + end, received[rank], kind, rank, stream)
                    begin, end = begin + sent[rank], end + received[rank]
            if output is not None:
                self._store(output, y, True)

        return self._run(async_op, call, [output])

    def barrier(self, async_op: bool = False) -> Work | None:
        """See `Backend.barrier`."""

        def call() -> None:
            x = self._cupy.zeros(1, "uint8")
            kind, how = self._nccl.NCCL_UINT8, self._nccl.NCCL_SUM
            self._comm.allReduce(x.data.ptr, x.data.ptr, 1, kind, how, self._stream)
            x.get()

        return self._run(async_op, call, None)

    # --- between two ranks -----------------------------------------------------------------------

    def send(self, tensor: Any, to: int, tag: int = 0) -> None:
        """See `Backend.send`."""
        self.isend(tensor, to, tag).wait()

    def recv(self, tensor: Any, source: int | None, tag: int = 0) -> int:
        """See `Backend.recv`."""
        self.irecv(tensor, source, tag).wait()
        assert source is not None
        return source

    def isend(self, tensor: Any, to: int, tag: int = 0) -> Work:
        """See `Backend.isend`."""
        self._no_tag("send", tag)
        x = self._load(tensor, None)
        kind = self._nccl.NCCL_UINT8
        self._queue.append(lambda: self._comm.send(x.data.ptr, x.size, kind, to, self._stream))
        return CallWork(self._flush, lambda: False, [tensor])

    def irecv(self, tensor: Any, source: int | None, tag: int = 0) -> Work:
        """See `Backend.irecv`."""
        self._no_tag("recv", tag)
        if source is None:
            raise helpful(ArgumentError, "recv", "NCCL cannot receive from any rank",
                          "src or group_src", "neither")  # fmt: skip
        self._target("recv", tensor)
        y = self._cupy.empty(self._nbytes(tensor), "uint8")
        kind = self._nccl.NCCL_UINT8
        self._queue.append(lambda: self._comm.recv(y.data.ptr, y.size, kind, source, self._stream))

        def finish() -> None:
            self._flush()
            self._store(tensor, y, True)

        return CallWork(finish, lambda: False, [tensor])

    @staticmethod
    def _no_tag(op: str, tag: int) -> None:
        if tag:
            raise helpful(ArgumentError, op, "NCCL has no tags", "tag 0", str(tag))

    def _flush(self) -> None:
        """Begins what is queued, all together: in pairs, one after another, it would deadlock."""
        queued, self._queue = self._queue, []
        if queued:
            with self._together():
                for begin in queued:
                    begin()
            self._cupy.cuda.get_current_stream().synchronize()

    # --- static memory ---------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Buffer:
        """See `Backend.allocate`."""
        return HostBuffer(nbytes)

    def plan_all_reduce(
        self, buffer: Buffer, offset: int, count: int, dtype: DType, op: ReduceOp
    ) -> Plan:
        """See `Backend.plan_all_reduce`."""
        x = buffer.tensor((count,), dtype, offset)
        return CallPlan(self._lane, lambda: _done(self.all_reduce(x, op)))

    def plan_reduce_scatter(
        self, buffer: Buffer, offset: int, count: int, dtype: DType, op: ReduceOp
    ) -> Plan:
        """See `Backend.plan_reduce_scatter`."""
        x = buffer.tensor((self.size, count), dtype, offset)
        return CallPlan(self._lane, lambda: _done(self.reduce_scatter(x[self.rank], x, op)))

    def plan_all_gather(self, buffer: Buffer, offset: int, count: int, dtype: DType) -> Plan:
        """See `Backend.plan_all_gather`."""
        x = buffer.tensor((self.size, count), dtype, offset)
        return CallPlan(self._lane, lambda: _done(self.all_gather(x, x[self.rank])))

    def stats(self) -> dict[str, int]:
        """See `Backend.stats`: NCCL tells nothing."""
        return dict.fromkeys(("puts", "put_bytes", "direct_bytes", "staged_bytes", "sleeps"), 0)

    def close(self) -> None:
        """See `Backend.close`."""
        if self._open is not None:
            self._open.destroy()
        self._open = None
        self._lane.close()


def _done(work: Work | None) -> None:
    assert work is None


class NCCLEngine(Engine):
    """Ranks with a GPU each: the one whose number is LOCAL_RANK, or the only one."""

    name = "nccl"

    def __init__(self, meeting: Meeting) -> None:
        self._modules = _library()
        self._meeting = meeting
        self.rank, self.size = meeting.rank, meeting.size
        cupy = self._modules[0]
        there = cupy.cuda.runtime.getDeviceCount()
        cupy.cuda.Device(int(os.environ.get("LOCAL_RANK", "0")) % there).use()

    def group(self, ranks: Sequence[int], key: str, timeout: float) -> Backend:
        """See `Engine.group`."""
        nccl = self._modules[1]
        store, name = self._meeting.store, f"nccl/{key}"
        me = list(ranks).index(self.rank)
        if me == 0:
            store.set(name, json.dumps(list(nccl.get_unique_id())))
        store.wait([name], timeout)
        unique = tuple(json.loads(store.get(name)))
        return NCCLBackend(nccl.NcclCommunicator(len(ranks), unique, me), me, len(ranks),
                           self._modules)  # fmt: skip
