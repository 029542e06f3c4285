"""Ranks that are threads of one process: a backend without an engine, for logic above backends.

`run(size, body)` calls ``body(group)`` once for each rank, each on a thread of its own, and gives
the results in order of ranks.  Collectives meet at a barrier and compute from everyone's data, in
order of ranks.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import eager
from eager.distributed import process_group
from eager.distributed.backends.base import Backend, CallWork, ReduceOp
from eager.distributed.errors import Mismatch, PeerLost

TIMEOUT = 60.0
COMBINE = {
    ReduceOp.SUM: lambda xs: sum(xs[1:], xs[0]),
    ReduceOp.AVG: lambda xs: sum(xs[1:], xs[0]) / len(xs),
    ReduceOp.MAX: lambda xs: np.maximum.reduce(xs),
    ReduceOp.MIN: lambda xs: np.minimum.reduce(xs),
}


_seeding = threading.Lock()


def seeded(make, seed: int = 0):
    """``make()`` with the default stream at `seed`, which ranks that are threads share."""
    with _seeding:
        eager.manual_seed(seed)
        return make()


class Meeting:
    """Where ranks show each other values."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=TIMEOUT)
        self.values: list = [None] * size

    def exchange(self, rank: int, value):
        try:
            self.values[rank] = value
            self.barrier.wait()
            seen = list(self.values)
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise PeerLost("a rank has left", -1) from error
        return seen


class Memory:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.bytes = eager.zeros(nbytes, dtype=eager.uint8).numpy()

    def tensor(self, shape, dtype, offset=0):
        count = int(np.prod(shape, dtype=int))
        return eager.frombuffer(self.bytes, dtype=dtype, count=count, offset=offset).reshape(shape)


class LocalPlan:
    algorithm, address = "local", 0

    def __init__(self, backend, tensor, op) -> None:
        self.backend, self.tensor, self.op = backend, tensor, op
        self.runs = 0

    def run(self) -> None:
        self.runs += 1
        self.backend.all_reduce(self.tensor, self.op)

    def run_async(self):
        return self.backend.later(self.run, [self.tensor])


class LocalBackend(Backend):
    name = "local"

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size, self.meeting = rank, meeting.size, meeting
        self.thread = ThreadPoolExecutor(1)
        self.log: list[str] = []

    def later(self, call, value):
        done = self.thread.submit(call)
        return CallWork(done.result, done.done, value)

    def _meet(self, what, tensor, async_op, write):
        def call():
            x = np.array(tensor.detach().double().numpy())
            seen = self.meeting.exchange(self.rank, (what, x))
            if len({(w, v.shape) for w, v in seen}) > 1:
                raise Mismatch(f"{[w for w, _ in seen]}")
            write([v for _, v in seen])

        self.log.append(what[0])
        # after what is under way, as on a group's thread
        work = self.later(call, [tensor])
        if async_op:
            return work
        work.wait()
        return None

    @staticmethod
    def _store(tensor, values):
        with eager.no_grad():
            tensor.copy_(eager.tensor(values).reshape(tensor.shape).to(tensor.dtype))

    def all_reduce(self, tensor, op, async_op=False):
        if threading.current_thread() in self.thread._threads:  # a plan's run
            seen = self.meeting.exchange(self.rank, np.array(tensor.double().numpy()))
            return self._store(tensor, COMBINE[op](seen))
        return self._meet(("all_reduce", int(op)), tensor, async_op,
                          lambda xs: self._store(tensor, COMBINE[op](xs)))  # fmt: skip

    def broadcast(self, tensor, root, async_op=False):
        return self._meet(("broadcast", root), tensor, async_op,
                          lambda xs: self._store(tensor, xs[root]))  # fmt: skip

    def all_gather(self, output, input, async_op=False):
        return self._meet(("all_gather", 0), input, async_op,
                          lambda xs: self._store(output, np.concatenate(
                              [x.reshape(-1) for x in xs])))  # fmt: skip

    def gather(self, output, input, root, async_op=False):
        return self._meet(("gather", root), input, async_op,
                          lambda xs: None if output is None else self._store(
                              output, np.concatenate([x.reshape(-1) for x in xs])))  # fmt: skip

    def barrier(self, async_op=False):
        return self._meet(("barrier", 0), eager.zeros(1), async_op, lambda _: None)

    def allocate(self, nbytes):
        return Memory(nbytes)

    def plan_all_reduce(self, buffer, offset, count, dtype, op):
        seen = self.meeting.exchange(self.rank, (count, str(dtype)))
        if len(set(seen)) > 1:
            raise Mismatch(f"plans of {seen}")
        return LocalPlan(self, buffer.tensor((count,), dtype, offset), op)

    def plan_all_gather(self, buffer, offset, count, dtype):
        whole = buffer.tensor((self.size * count,), dtype, offset)
        mine = whole[self.rank * count : (self.rank + 1) * count]
        plan = LocalPlan(self, whole, None)
        plan.run = lambda: self.all_gather(whole, mine)
        return plan

    def stats(self):
        return {"staged_bytes": 0}

    def close(self):
        self.thread.shutdown(wait=False, cancel_futures=True)

    def _absent(self, *_args, **_options):
        raise NotImplementedError

    reduce = reduce_scatter = scatter = all_to_all = _absent
    send = recv = isend = irecv = plan_reduce_scatter = _absent


LocalBackend.__abstractmethods__ = frozenset()


def run(size: int, body):
    """The results of ``body(group)`` on every rank; raises the first rank's error, after all."""
    meeting = Meeting(size)
    groups = [
        process_group.ProcessGroup(
            1000 + r, range(size), LocalBackend(r, meeting), "local", TIMEOUT
        )
        for r in range(size)
    ]
    results: list = [None] * size
    errors: list = [None] * size

    def call(rank: int) -> None:
        try:
            results[rank] = body(groups[rank])
        except BaseException as error:
            errors[rank] = error
            meeting.barrier.abort()

    before = process_group.resolve
    process_group.resolve = lambda given, op: given if given is not None else before(given, op)
    try:
        threads = [threading.Thread(target=call, args=(r,)) for r in range(size)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        process_group.resolve = before
        for g in groups:
            g.backend.close()
    first = [e for e in errors if e is not None]
    primary = [e for e in first if not isinstance(e, PeerLost)]
    if first:
        raise (primary or first)[0]
    return results
