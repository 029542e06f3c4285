"""`Reducer`: reduces gradients bucket by bucket while backward computes the rest.

Hooks on the parameters tell when a gradient is complete.  The first one of a backward begins a
*round*: every gradient that arrives counts its bucket down, and buckets start on the group's
thread as they are complete, in one order on all ranks.  When the engine has walked the tape, the
round ends: buckets that wait for parameters without gradient start, and all are waited for.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import eager
from eager import _C, Tensor
from eager.distributed import graph
from eager.distributed.backends.base import ReduceOp
from eager.errors import ArgumentError, AutogradError, helpful
from eager.nn.parallel.buckets import Bucket, assign

if TYPE_CHECKING:
    from eager.distributed.process_group import ProcessGroup

Hook = Callable[[Any, "GradBucket"], Any]


class GradBucket:
    """What a communication hook gets: one bucket of this rank's gradients."""

    def __init__(self, bucket: Bucket, parameters: Sequence[Tensor], is_last: bool) -> None:
        self._bucket, self._parameters, self._is_last = bucket, parameters, is_last
        self._buffer = bucket.flat

    def index(self) -> int:
        """Its place in the order of buckets."""
        return self._bucket.index

    def buffer(self) -> Tensor:
        """All gradients, flat; what lies between them is zero."""
        return self._buffer

    def set_buffer(self, tensor: Tensor) -> None:
        """Replaces `buffer`, for hooks around hooks; the shape must not change."""
        self._buffer = tensor

    def gradients(self) -> list[Tensor]:
        """The gradients, as views of the bucket."""
        return list(self._bucket.views)

    def parameters(self) -> list[Tensor]:
        """The parameters they belong to."""
        return [self._parameters[i] for i in self._bucket.members]

    def is_last(self) -> bool:
        """Whether no bucket comes after it."""
        return self._is_last


class Reducer:
    """Averages the gradients of `parameters` over a group.

    Args:
        names: what errors call the parameters.
        limit: the size of buckets in bytes.
        find_unused: parameters may be without gradient in a backward.
        static: the same ones in every backward.
    """

    def __init__(
        self, parameters: Sequence[Tensor], names: Sequence[str], group: ProcessGroup, limit: int,
        find_unused: bool, static: bool,
    ) -> None:  # fmt: skip
        self.parameters, self.names = list(parameters), list(names)
        self.group, self.backend = group, group.backend
        self.limit, self.find_unused, self.static = limit, find_unused, static
        self.armed = True  # by forward: whether this backward is reduced
        self.hook: tuple[Hook, Any] | None = None
        self.missing: list[int] = []  # without gradient in the last round, against the rules
        self.counters = {"rounds": 0, "bytes_reduced": 0, "staging_copies": 0, "staging_bytes": 0}
        self.waited = 0.0
        self._used: Tensor = eager.zeros(max(1, len(self.parameters)), dtype=eager.uint8)
        self._arrived: list[int] = []  # in this round
        self._expected: set[int] | None = None  # what this round's graph reaches; None: all
        self._settled = False  # whether the order of buckets is final
        self._round: _Round | None = None
        self._home: dict[int, tuple[Bucket, Tensor]] = {}
        self._build(assign(self.parameters, reversed(range(len(self.parameters))), limit))
        me = weakref.ref(self)  # parameters outlive this object, and must not keep it
        handles = [
            p.register_post_accumulate_grad_hook(_notify(me, i))
            for i, p in enumerate(self.parameters)
        ]
        self._sinks = [_sink(p) for p in self.parameters]
        done = weakref.finalize(self, _release, self.parameters, handles, self._home)
        done.atexit = False

    # --- buckets ---------------------------------------------------------------------------------

    def _build(self, members: Sequence[Sequence[int]]) -> None:
        """Makes the buckets.  Collective.  Gradients that exist move into them."""
        buckets = [Bucket(i, each, self.parameters, self.backend) for i, each in enumerate(members)]
        self.buckets = buckets
        with eager.no_grad():
            for bucket in buckets:
                for i, view in zip(bucket.members, bucket.views, strict=True):
                    p = self.parameters[i]
                    self._home[i] = bucket, view
                    self._count_copies(p)
                    p._set_grad_buffer(view)
                    if p.grad is not None:
                        view.copy_(p.grad)
                        p.grad = view

    def _settle(self, order: Sequence[int] | None) -> None:
        """At the end of the first round: buckets in the order in which gradients arrived on rank 0,
        or as they are if some rank cannot tell (None).

        Collective, and seen by no trace."""
        if self._settled:
            return
        self._settled = True
        if self.backend.size == 1:
            return
        with eager.op.hidden():
            told = eager.tensor(int(order is not None), dtype=eager.int64)
            self.backend.all_reduce(told, ReduceOp.MIN)
            if not told.item():
                return
            shared = eager.tensor(order, dtype=eager.int64)
            self.backend.broadcast(shared, 0)
            members = assign(self.parameters, shared.tolist(), self.limit)
            if members != [b.members for b in self.buckets]:
                self._build(members)

    # --- a round ---------------------------------------------------------------------------------

    def prepare(self, outputs: Sequence[Tensor] | None) -> None:
        """Before a backward that starts from `outputs`: which parameters it will reach."""
        if outputs is None:
            self._expected = None
            return
        found = reachable(outputs)
        reached = {i for i, sink in enumerate(self._sinks) if sink in found}
        # several forwards may come before one backward
        self._expected = reached if self._expected is None else self._expected | reached

    def arrived(self, i: int) -> None:
        """The gradient of parameter `i` is complete."""
        if not self.armed:
            return
        if self._round is not None and self._round.callback() is None:
            self.abandon()  # its backward has failed
        if self._round is None:
            end = _End(self)
            self._round = _Round(self, weakref.ref(end))
            _C.after_backward(end)
        self._round.add(i)

    def adopt(self, i: int) -> None:
        """Sees to it that the gradient of parameter `i` lies in its bucket."""
        p, (_, view) = self.parameters[i], self._home[i]
        grad = p.grad
        if grad is view or grad is None:
            return
        if grad.requires_grad:
            raise helpful(
                AutogradError, "DistributedDataParallel",
                f"the gradient of {self.names[i]} is itself differentiable",
                expected="backward without create_graph", given="create_graph=True",
                hint="differentiate the module itself, and average the result",
            )  # fmt: skip
        with eager.no_grad():
            view.copy_(grad)
        p.grad = view
        self.counters["staging_copies"] += 1
        self.counters["staging_bytes"] += p.nbytes

    def start(self, bucket: Bucket) -> Callable[[], None]:
        """Begins to reduce a bucket; gives the call that waits for the end."""
        self.counters["bytes_reduced"] += bucket.nbytes
        if self.hook is None:
            if self.backend.size == 1:
                return _nothing
            return _waiter(bucket.static.plan.run_async())
        hook, state = self.hook
        last = bucket.index == len(self.buckets) - 1
        with eager.no_grad():
            future = hook(state, GradBucket(bucket, self.parameters, last))

        def finish() -> None:
            result = future.wait()
            if isinstance(result, list | tuple):
                result = result[0]
            if result is not bucket.flat and result.data_ptr() != bucket.flat.data_ptr():
                with eager.no_grad():
                    bucket.flat.copy_(result.reshape(bucket.flat.shape))
                self.counters["staging_copies"] += 1
                self.counters["staging_bytes"] += bucket.nbytes

        return finish

    def describe(self, bucket: Bucket) -> str:
        """What an error in reducing `bucket` was about."""
        first, last = self.names[bucket.members[0]], self.names[bucket.members[-1]]
        return (
            f"DistributedDataParallel was averaging the gradients of bucket {bucket.index + 1} of "
            f"{len(self.buckets)}: {first}" + (f" to {last}" if last != first else "")
        )

    def finish(self) -> None:
        """The end of a round; called when the engine has walked the tape."""
        round_, self._round, self._expected = self._round, None, None
        if round_ is None:
            return
        self.counters["rounds"] += 1
        missing = [i for i in range(len(self.parameters)) if i not in round_.seen]
        if round_.recording:
            self._record(missing)
            self._settle(None)  # the program knows these buckets
            return
        began = time.perf_counter()
        if missing and not self.find_unused and not self.static:
            self.missing = missing
            round_.wait()
            self.waited += time.perf_counter() - began
            return
        round_.complete(missing)
        # after all buckets: which of them started before this call differs between ranks
        used = self._share_used(missing) if self.find_unused else None
        round_.wait()
        for i in missing:
            p, (_, view) = self.parameters[i], self._home[i]
            # Gradients of parameters that no rank has used stay what they were.
            if p.grad is None and used is not None and used[i]:
                p.grad = view
        self.waited += time.perf_counter() - began
        self._settle(None if missing else round_.order)

    def _share_used(self, missing: Sequence[int]) -> list[int]:
        """For each parameter whether some rank has a gradient for it."""
        flags = [1] * len(self.parameters)
        for i in missing:
            flags[i] = int(self.parameters[i].grad is not None)
        self._used.copy_(eager.tensor(flags or [0], dtype=eager.uint8))
        self.backend.all_reduce(self._used, ReduceOp.MAX)
        return [int(x) for x in self._used.tolist()]

    def _record(self, missing: list[int]) -> None:
        """The one place that a trace sees: the reductions of a round, as ops.

        The compiled program runs each where backward has written the bucket's last gradient."""
        if (missing and self.find_unused) or self.hook is not None:
            raise helpful(
                ArgumentError, "DistributedDataParallel", "this step cannot be compiled",
                expected="gradients of all parameters, and no communication hook",
                given="a communication hook" if self.hook is not None
                else f"no gradient of {self.names[missing[0]]}",
                hint="run the step without jit.compile",
            )  # fmt: skip
        if missing and not self.static:
            self.missing = missing
            return
        for bucket in self.buckets:
            grads = [self.parameters[i].grad for i in bucket.members]
            views = graph.reduce_gradients(
                bucket.static, self.group.id, int(ReduceOp.AVG), bucket.places, grads
            )
            for i, view in zip(bucket.members, views, strict=True):
                if i not in missing:
                    self.parameters[i].grad = view

    def abandon(self) -> None:
        """Forgets a round whose backward has failed, after what it started has ended."""
        round_, self._round, self._expected = self._round, None, None
        if round_ is not None:
            round_.wait()

    def _count_copies(self, p: Tensor) -> None:
        copies = p._grad_buffer_counts()[1]
        self.counters["staging_copies"] += copies
        self.counters["staging_bytes"] += copies * p.nbytes

    def stats(self) -> dict[str, float]:
        """See `DistributedDataParallel.stats`."""
        copies = [(p._grad_buffer_counts()[1], p.nbytes) for p in self.parameters]
        return {
            **self.counters,
            "buckets": len(self.buckets),
            "staging_copies": self.counters["staging_copies"] + sum(n for n, _ in copies),
            "staging_bytes": self.counters["staging_bytes"] + sum(n * b for n, b in copies),
            "wait_seconds": self.waited,
        }


class _Round:
    """The reductions of one backward."""

    def __init__(self, reducer: Reducer, callback: weakref.ref[_End]) -> None:
        self.reducer = reducer
        self.callback = callback
        self.recording = graph.recording()
        self.seen: set[int] = set()
        self.order: list[int] = []
        self.pending = [len(b.members) for b in reducer.buckets]
        self.running: list[Callable[[], None]] = []
        self.next = 0  # the first bucket that has not started
        expected = reducer._expected
        self.unreached: set[int] = set()
        if reducer.find_unused and expected is not None and not self.recording:
            self.unreached = set(range(len(reducer.parameters))) - expected
            for i in self.unreached:
                self._clear(i)
                self.pending[reducer._home[i][0].index] -= 1

    def add(self, i: int) -> None:
        reducer = self.reducer
        bucket = reducer._home[i][0]
        if i in self.unreached or (bucket.index < self.next and not self.recording):
            raise helpful(
                AutogradError, "DistributedDataParallel",
                f"the gradient of {reducer.names[i]} arrived after its bucket had been reduced",
                expected="parameters that are reached through the outputs of forward alone",
                given="a use of the wrapped module that went past forward",
                hint="call the DistributedDataParallel module instead of its .module",
            )  # fmt: skip
        if i in self.seen:
            return  # of a backward within the backward
        self.seen.add(i)
        self.order.append(i)
        if self.recording:
            return
        reducer.adopt(i)
        self.pending[bucket.index] -= 1
        self._advance()

    def _advance(self) -> None:
        buckets = self.reducer.buckets
        while self.next < len(buckets) and not self.pending[self.next]:
            self.running.append(self.reducer.start(buckets[self.next]))
            self.next += 1

    def _clear(self, i: int) -> None:
        """A parameter that this backward has no gradient for adds nothing, or what it had."""
        if self.reducer.parameters[i].grad is None:
            with eager.no_grad():
                self.reducer._home[i][1].zero_()
        else:
            self.reducer.adopt(i)

    def complete(self, missing: Sequence[int]) -> None:
        """Starts what still waits for parameters that get no gradient in this round."""
        for i in missing:
            if i not in self.unreached:
                self._clear(i)
        self.pending = [0] * len(self.pending)
        self._advance()

    def wait(self) -> None:
        """Waits for all that was started; raises what went wrong first."""
        error: BaseException | None = None
        for bucket, finish in zip(self.reducer.buckets, self.running, strict=False):
            try:
                finish()
            except BaseException as problem:
                if error is None:
                    error = problem
                    error.add_note(self.reducer.describe(bucket))
        self.running = []
        if error is not None:
            raise error


class _End:
    """What the engine calls at the end; it lives as long as that can happen."""

    def __init__(self, reducer: Reducer) -> None:
        self._reducer = reducer

    def __call__(self) -> None:
        self._reducer.finish()


def _notify(reducer: weakref.ref[Reducer], i: int) -> Callable[[Tensor], None]:
    def notify(_: Tensor) -> None:
        living = reducer()
        if living is not None:
            living.arrived(i)

    return notify


def _waiter(work: Any) -> Callable[[], None]:
    def finish() -> None:
        work.wait()

    return finish


def _nothing() -> None:
    """The end of a reduction over one rank."""


def _release(
    parameters: Sequence[Tensor], handles: Sequence[Any], home: dict[int, tuple[Bucket, Tensor]]
) -> None:
    for i, (p, handle) in enumerate(zip(parameters, handles, strict=True)):
        handle.remove()
        if p._grad_buffer() is home[i][1]:  # not that of a later wrapper
            p._set_grad_buffer(None)


def _sink(parameter: Tensor) -> Any:
    """The node that accumulates the parameter's gradient."""
    with eager.enable_grad():
        seen = parameter.permute(tuple(range(parameter.ndim)))
    assert seen.grad_fn is not None
    return seen.grad_fn.next_functions[0][0]


def reachable(outputs: Sequence[Tensor]) -> set[Any]:
    """All nodes that a backward from `outputs` visits."""
    seen: set[Any] = set()
    stack = [y.grad_fn for y in outputs if y.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        stack.extend(n for n, _ in node.next_functions if n is not None)
    return seen


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in tensors_in(v)]
    return []
