"""What a backend offers: the collectives of one group, and static memory.

Ranks, roots and peers are numbered within the group.  The functions of
`eager.distributed.collectives` have checked group membership, and that tensors are neither part
of a recorded graph nor read-only, before they call a backend.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import IntEnum
from typing import Any, Protocol

from eager import Tensor
from eager.distributed.errors import DistributedError
from eager.dtypes import DType
from eager.errors import ArgumentError, helpful

__all__ = ["Backend", "Buffer", "CallWork", "Engine", "Future", "Plan", "ReduceOp", "Work"]


def number(name: str, default: float) -> float:
    """The variable `name` as a number above 0.

    Raises:
        ArgumentError: it is something else.
    """
    text = os.environ.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise helpful(ArgumentError, "init_process_group", f"{name} is not usable",
                      "a number above 0", repr(text))  # fmt: skip
    return value


class ReduceOp(IntEnum):
    """How elements are combined.

    Results are bit-identical on all ranks.  AVG is SUM divided by the number of ranks, and for
    floating dtypes only.  For bool, SUM and MAX are "or", PRODUCT and MIN are "and".
    float16 and bfloat16 are combined in float32.
    """

    # the numbers of csrc/comm/dtype.h
    SUM = 0
    AVG = 1
    MIN = 2
    MAX = 3
    PRODUCT = 4
    # torch.distributed's others; collectives refuse them
    BAND = 16
    BOR = 17
    BXOR = 18
    PREMUL_SUM = 19


class Future:
    """What `Work.get_future` gives: the tensors of an operation, once they are there."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def done(self) -> bool:
        """Whether the value is there."""
        return self._work.is_completed()

    def wait(self) -> Any:
        """Waits for the value and returns it; raises what went wrong."""
        self._work.wait()
        return self._work.result()

    def value(self) -> Any:
        """The value; raises DistributedError if the operation still runs."""
        if not self._work.is_completed():
            raise helpful(DistributedError, "Future.value", "the operation still runs",
                          "a completed future", "one under way", "wait()")  # fmt: skip
        return self.wait()

    def then(self, callback: Callable[[Future], Any]) -> Future:
        """A future of ``callback(self)``, which the first `wait` on it calls."""
        return Future(_Chained(self, callback))


class Work(ABC):
    """A handle of an asynchronous operation."""

    result_value: Any = None

    @abstractmethod
    def wait(self, timeout: timedelta | float | None = None) -> bool:
        """Waits until the operation has ended; raises what went wrong.

        `timeout` is a timedelta or seconds; None leaves it to that of the group.

        Raises:
            Timeout: `timeout` has passed; the operation goes on.
        """

    @abstractmethod
    def is_completed(self) -> bool:
        """Whether it has ended, well or not."""

    @abstractmethod
    def exception(self) -> BaseException | None:
        """What went wrong; None if nothing did, or while it runs."""

    def is_success(self) -> bool:
        """Whether it has ended well."""
        return self.is_completed() and self.exception() is None

    def result(self) -> Any:
        """The list of tensors the operation wrote."""
        return self.result_value

    def get_future(self) -> Future:
        """A future of `result`."""
        return Future(self)


class CallWork(Work):
    """Work whose end is a call that blocks: `finish`, made once, by whoever waits first.

    `ready` tells without blocking whether the call would return at once.
    """

    def __init__(
        self, finish: Callable[[], None], ready: Callable[[], bool], value: Any = None
    ) -> None:
        self._finish: Callable[[], None] | None = finish
        self._ready = ready
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self.result_value = value

    def wait(self, timeout: timedelta | float | None = None) -> bool:  # noqa: ARG002
        """See `Work.wait`; the deadline is that of the call itself."""
        with self._lock:
            finish, self._finish = self._finish, None
            if finish is not None:
                try:
                    finish()
                except BaseException as error:
                    self._error = error
        if self._error is not None:
            raise self._error
        return True

    def is_completed(self) -> bool:
        """See `Work.is_completed`."""
        if self._finish is not None and self._ready():
            try:
                self.wait()
            except BaseException:
                return True  # kept for wait() and exception()
        return self._finish is None

    def exception(self) -> BaseException | None:
        """See `Work.exception`."""
        return self._error


class _Chained(Work):
    """What `Future.then` waits for."""

    def __init__(self, before: Future, callback: Callable[[Future], Any]) -> None:
        self._before, self._callback = before, callback
        self._lock = threading.Lock()
        self._called = False
        self._error: BaseException | None = None

    def wait(self, timeout: timedelta | float | None = None) -> bool:  # noqa: ARG002
        with self._lock:
            if not self._called:
                self._called = True
                try:
                    self._before.wait()
                    self.result_value = self._callback(self._before)
                except BaseException as error:
                    self._error = error
        if self._error is not None:
            raise self._error
        return True

    def is_completed(self) -> bool:
        return self._called or self._before.done()

    def exception(self) -> BaseException | None:
        return self._error


class Buffer(Protocol):
    """Static memory of a group, which peers can write or map."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...

    def tensor(self, shape: Sequence[int], dtype: DType, offset: int = 0) -> Tensor:
        """A contiguous tensor over the memory from `offset`, in bytes; it keeps the buffer alive.

        Raises:
            ArgumentError: it does not fit, or `offset` is not a multiple of the element size.
        """
        ...


class Plan(Protocol):
    """A collective over static memory: nothing is allocated, looked up or exchanged when it runs.

    Plans of one group may overlap if all ranks start them in one order and finish them in that
    order.
    """

    @property
    def algorithm(self) -> str:
        """Such as "direct"."""
        ...

    @property
    def address(self) -> int:
        """Of the native plan, for compiled programs; 0: there is none (mpi, nccl)."""
        ...

    def start(self) -> None:
        """Tells peers that the data is ready, and sends what needs no answer."""
        ...

    def finish(self) -> None:
        """Does the rest."""
        ...

    def run(self) -> None:
        """`start` and `finish`, without the interpreter lock."""
        ...

    def run_async(self) -> Work:
        """`run` on the group's thread."""
        ...


class Backend(ABC):
    """The collectives of one group.

    Tensors may be strided: a backend packs and unpacks those it cannot use as they are.  Every
    method that takes `async_op` returns a Work if it is true, else None after the operation has
    ended.  All raise PeerLost, Timeout and Mismatch (`eager.distributed.errors`) as far as the
    engine beneath can tell.
    """

    name: str
    rank: int
    size: int
    # of the native group, for compiled programs; 0: there is none, and programs do without
    address: int = 0

    @abstractmethod
    def all_reduce(self, tensor: Tensor, op: ReduceOp, async_op: bool = False) -> Work | None:
        """Combines `tensor` over all ranks, in place."""

    @abstractmethod
    def reduce(
        self, tensor: Tensor, root: int, op: ReduceOp, async_op: bool = False
    ) -> Work | None:
        """As all_reduce, at `root` only; the others' tensors stay as they are."""

    @abstractmethod
    def reduce_scatter(
        self, output: Tensor, input: Tensor, op: ReduceOp, async_op: bool = False
    ) -> Work | None:
        """Rank r's `output` becomes part r of the combined `input`, of size x output elements."""

    @abstractmethod
    def all_gather(self, output: Tensor, input: Tensor, async_op: bool = False) -> Work | None:
        """`output` becomes all ranks' `input`, one after another."""

    @abstractmethod
    def broadcast(self, tensor: Tensor, root: int, async_op: bool = False) -> Work | None:
        """`tensor` becomes root's."""

    @abstractmethod
    def gather(
        self, output: Tensor | None, input: Tensor, root: int, async_op: bool = False
    ) -> Work | None:
        """As all_gather, at `root` only; `output` is None elsewhere."""

    @abstractmethod
    def scatter(
        self, output: Tensor, input: Tensor | None, root: int, async_op: bool = False
    ) -> Work | None:
        """Rank r's `output` becomes part r of root's `input`, which is None elsewhere."""

    @abstractmethod
    def all_to_all(
        self, output: Tensor, input: Tensor, received: Sequence[int], sent: Sequence[int],
        async_op: bool = False,
    ) -> Work | None:  # fmt: skip
        """Sends the next sent[r] elements of the flat `input` to rank r, and puts the received[r]
        elements from it at the next place of the flat `output`."""

    @abstractmethod
    def barrier(self, async_op: bool = False) -> Work | None:
        """Ends when all ranks have begun it."""

    @abstractmethod
    def send(self, tensor: Tensor, to: int, tag: int = 0) -> None:
        """Sends to one rank."""

    @abstractmethod
    def recv(self, tensor: Tensor, source: int | None, tag: int = 0) -> int:
        """Receives from one rank (None: from any) and returns which."""

    @abstractmethod
    def isend(self, tensor: Tensor, to: int, tag: int = 0) -> Work:
        """`send`, asynchronously."""

    @abstractmethod
    def irecv(self, tensor: Tensor, source: int | None, tag: int = 0) -> Work:
        """`recv`, asynchronously."""

    @abstractmethod
    def allocate(self, nbytes: int) -> Buffer:
        """New zeroed static memory.  Not collective."""

    @abstractmethod
    def plan_all_reduce(
        self, buffer: Buffer, offset: int, count: int, dtype: DType, op: ReduceOp
    ) -> Plan:
        """An all_reduce in place of `count` elements from `offset` (bytes).  Collective; `count`,
        `dtype` and `op` are the same on all ranks, the offsets may differ."""

    @abstractmethod
    def plan_reduce_scatter(
        self, buffer: Buffer, offset: int, count: int, dtype: DType, op: ReduceOp
    ) -> Plan:
        """A reduce_scatter of size x `count` elements; rank r's part is left in its place, what
        the other parts hold is then undefined."""

    @abstractmethod
    def plan_all_gather(self, buffer: Buffer, offset: int, count: int, dtype: DType) -> Plan:
        """An all_gather of size x `count` elements, of which rank r's are in their place."""

    def open_window(self, nbytes: int) -> Any:
        """See `eager.distributed.window.Window`, which wraps it.  Collective.

        Raises:
            DistributedError: the engine has no one-sided writes.
        """
        del nbytes
        raise helpful(DistributedError, "Window", "the backend has no one-sided writes",
                      'backend "rdma"', self.name, "send and recv")  # fmt: skip

    @abstractmethod
    def stats(self) -> dict[str, int]:
        """Counters of this process, over all groups: puts, put_bytes, direct_bytes, staged_bytes,
        sleeps (csrc/comm/fabric.h); all 0 where the engine has none."""

    def lost(self) -> int:
        """The lowest rank of the job that is known to be lost; -1 if none is."""
        return -1

    def info(self) -> dict[str, Any]:
        """What `eager.distributed.info` shows of the group, beyond names and ranks."""
        return {}

    def set_timeout(self, seconds: float) -> None:  # noqa: B027
        """The deadline of later operations, where the engine has deadlines."""

    def close(self) -> None:  # noqa: B027
        """Frees what the group holds.  Not collective."""


class Engine(ABC):
    """What joins all ranks of the job; makes the backends of groups."""

    name: str
    rank: int
    size: int

    @abstractmethod
    def group(self, ranks: Sequence[int], key: str, timeout: float) -> Backend:
        """A backend for `ranks`: ascending, this one among them.  Collective over them; `key` names
        the call and is the same on all.  `timeout` is in seconds."""

    def peers(self) -> list[dict[str, Any]]:
        """For each rank of the job its transport, why it was chosen, and its host's number."""
        return [
            {"rank": r, "transport": self.name, "reason": "the engine chooses", "host": None}
            for r in range(self.size)
        ]

    def close(self) -> None:  # noqa: B027
        """Leaves the job.  Not collective; backends are closed before."""
