"""What backends of other engines share: memory of the process, and calls on a thread."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import eager
from eager import Tensor
from eager.distributed.backends.base import CallWork, Work
from eager.dtypes import DType
from eager.errors import ArgumentError, helpful

__all__ = ["CallPlan", "HostBuffer", "Lane"]


class HostBuffer:
    """Ordinary memory; see `base.Buffer`."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._memory = eager.zeros(nbytes, dtype=eager.uint8).numpy()

    def tensor(self, shape: Sequence[int], dtype: DType, offset: int = 0) -> Tensor:
        """See `base.Buffer.tensor`."""
        count = math.prod(shape)
        end = offset + count * dtype.itemsize
        if offset < 0 or offset % dtype.itemsize or min(shape, default=0) < 0 or end > self.nbytes:
            raise helpful(
                ArgumentError, "Buffer.tensor", "there is no such tensor in the memory",
                f"a place within {self.nbytes} bytes, at a multiple of the element size",
                f"{dtype} {tuple(shape)} at offset {offset}",
            )  # fmt: skip
        if count == 0:
            return eager.empty(*shape, dtype=dtype)
        flat = eager.frombuffer(self._memory, dtype=dtype, count=count, offset=offset)
        return flat.reshape(tuple(shape))


class Lane:
    """Runs calls in order: on the calling thread while nothing else is under way, else on a
    thread of its own."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name, self._begin)
        self._ident: int | None = None
        self._last: Future[Any] | None = None

    def _begin(self) -> None:
        self._ident = threading.get_ident()

    def run(self, call: Callable[[], None], async_op: bool, value: Any = None) -> Work | None:
        """Runs `call`; with `async_op` later, giving its Work."""
        if async_op:
            last = self._last = self._thread.submit(call)
            return CallWork(lambda: last.result(), last.done, value)
        here = threading.get_ident() == self._ident
        if self._last is not None and not self._last.done() and not here:
            self._thread.submit(call).result()
        else:
            call()
        return None

    def close(self) -> None:
        """Ends the thread after what was submitted."""
        self._thread.shutdown(wait=False)


class CallPlan:
    """A plan that is a call; see `base.Plan`."""

    algorithm = "the engine's"
    address = 0

    def __init__(self, lane: Lane, call: Callable[[], None]) -> None:
        self._lane, self._call = lane, call

    def start(self) -> None:
        """See `base.Plan.start`: engines without one-sided writes have nothing to begin."""

    def finish(self) -> None:
        """See `base.Plan.finish`."""
        self._lane.run(self._call, False)

    def run(self) -> None:
        """See `base.Plan.run`."""
        self._lane.run(self._call, False)

    def run_async(self) -> Work:
        """See `base.Plan.run_async`."""
        work = self._lane.run(self._call, True)
        assert work is not None
        return work
