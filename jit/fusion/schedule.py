"""Cuts stages into tasks, gives them to workers, and places barriers.

Stages are taken in plan order.  For each, every way to run it is weighed: cut into one part per
worker along each of its dimensions, or whole on one worker.  `jit.fusion.conflicts` says in which
epoch each way is safe at the earliest; the way chosen weighs barriers against the time of the
longest task.  Part p of every cut goes to worker p, so rows stay with the worker whose
cache holds them, and chains of row-parallel stages need no barrier at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import gcd, prod
from typing import NamedTuple

import numpy as np

from jit.fusion.bodies import Cut
from jit.fusion.conflicts import GRAIN, Array, Ledger
from jit.fusion.lazy import size
from jit.fusion.tile import Exchange, Gemm, Plan, Reduce, Stage, describe

# Nanoseconds: a task's dispatch, a barrier, one addition per point, one multiply-add of a
# matrix product.  They weigh the choices below and need not be exact.
TASK, BARRIER, ADDITION, PRODUCT = 60.0, 1500.0, 0.03, 0.02
# The same for a collective: waiting for other ranks, and one element's way there and back.
MEETING, TRANSFER = 3000.0, 0.5


class Task(NamedTuple):
    """A part of a stage on a worker.  `cut` None: all of it."""

    stage: int
    cut: Cut | None
    worker: int
    epoch: int


@dataclass(eq=False, slots=True)
class Schedule:
    """Who does what, and when.  Making it may change the form of stages in the plan.

    Attributes:
        workers: how many.
        epochs: how many; a barrier stands between each and the next.
        tasks: in stage order.  A worker runs its tasks of an epoch in this order.
        span: (first epoch, last epoch, first stage, last stage) that access each buffer.
        owners: for buffers of which every granule is accessed by one worker only: the runs of
            (first byte, worker); such memory is private to its workers within an epoch too.
        nanoseconds: the estimated time of a launch.
    """

    workers: int
    epochs: int
    tasks: list[Task]
    span: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    owners: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    nanoseconds: float = 0.0


class _Way(NamedTuple):
    """One way to run a stage: the dimension it is cut along, and the worker of each index (one
    entry: of all)."""

    dim: int
    workers: Array


def estimate(stage: Stage) -> float:
    """Nanoseconds one worker takes for a stage, about."""
    if isinstance(stage, Gemm):
        return stage.batch * (TASK + PRODUCT * stage.m * stage.n * stage.k)
    if isinstance(stage, Exchange):
        return MEETING + TRANSFER * max(stage.read, stage.written)
    points = prod(stage.shape)
    folds = stage.folds if isinstance(stage, Reduce) else []
    per_point = size(*(f.value for f in folds)) + len(folds) + 2 * len(stage.loads)
    inner = prod(stage.shape[: stage.kept]) if isinstance(stage, Reduce) else points
    per_store = size(*(s.value for s in stage.stores)) + 2 * len(stage.stores)
    return TASK + ADDITION * (points * per_point + inner * per_store)


def extents(stage: Stage) -> tuple[int, ...]:
    """The dimensions along which a stage may be cut."""
    if isinstance(stage, Gemm):
        return (stage.batch, stage.m, stage.n)
    if isinstance(stage, Exchange):
        return ()
    return stage.shape[: stage.kept] if isinstance(stage, Reduce) else stage.shape


def _parts(n: int, workers: int) -> Array:
    """The worker of each of `n` indices."""
    grain = gcd(n, GRAIN)
    steps = -(-n // grain)
    bounds = [min(steps * p // workers * grain, n) for p in range(workers + 1)]
    return np.repeat(np.arange(workers, dtype=np.int16), np.diff(bounds))


def _ways(stage: Stage, workers: int) -> Iterator[_Way]:
    whole = np.zeros(1, np.int16)
    if isinstance(stage, Exchange):  # all on one worker, in order
        yield _Way(0, whole)
        return
    if workers > 1:
        for d, n in enumerate(extents(stage)):
            if n < 2:
                continue
            parts = _parts(n, workers)
            if parts[-1] != parts[0]:
                yield _Way(d, parts)
    for w in range(workers):
        yield _Way(0, whole + np.int16(w))


class Scheduler:
    """Builds one schedule.

    Attributes:
        costs: estimated nanoseconds of each worker (columns) in each epoch (rows) so far.
        rows: the most common first extents of stages.
    """

    def __init__(self, plan: Plan, workers: int) -> None:
        self.plan, self.workers = plan, workers
        self.costs: list[Array] = []
        self.tasks: list[Task] = []
        heights = Counter(extents(s)[0] for s in plan.stages if extents(s))
        self.rows = [n for n, _ in heights.most_common(3) if n > 1]
        every_form = [form for s in plan.stages for form in (s, *self.forms(s))]
        self.ledger = Ledger(plan.buffers, every_form, workers)
        self.span: dict[int, tuple[int, int, int, int]] = {}

    def run(self) -> Schedule:
        """The schedule of all stages."""
        for i, stage in enumerate(self.plan.stages):
            self.place(i, stage)
        epochs = max(len(self.costs), 1)
        time = BARRIER * (epochs - 1) + sum(float(row.max()) for row in self.costs)
        return Schedule(self.workers, epochs, self.tasks, self.span, self.owners(), time)

    def place(self, i: int, stage: Stage) -> None:
        """Chooses how and when a stage runs."""
        best: tuple[float, int, _Way, Stage] | None = None
        for form in [stage, *self.forms(stage)]:
            accesses = self.ledger.accesses(form)
            cost = estimate(form)
            for way in _ways(form, self.workers):
                epoch = self.ledger.earliest(accesses, way.dim, way.workers)
                price = self.price(epoch, way, cost)
                if best is None or price < best[0] - 1e-6:
                    best = (price, epoch, way, form)
        assert best is not None
        _, epoch, way, stage = best
        self.plan.stages[i] = stage
        accesses = self.ledger.accesses(stage)
        self.add(i, way, epoch, estimate(stage))
        self.ledger.record(accesses, way.dim, way.workers, epoch)
        for access in [*accesses[0], *accesses[1]]:
            first, last, from_stage, _ = self.span.get(access.buffer, (epoch, epoch, i, i))
            self.span[access.buffer] = (min(first, epoch), max(last, epoch), from_stage, i)

    def forms(self, stage: Stage) -> Iterator[Gemm]:
        """Other forms of a tall product, as batches of shorter ones: where the rows are (time,
        batch) pairs and all other stages are cut along the batch, so can the product be."""
        if not isinstance(stage, Gemm) or stage.batch > 1 or self.workers == 1:
            return
        for rows in self.rows:
            if rows < stage.m and stage.m % rows == 0:
                yield replace(
                    stage,
                    batch=stage.m // rows,
                    m=rows,
                    a=stage.a._replace(batch=rows * stage.a.row),
                    b=stage.b._replace(batch=0),
                    c=stage.c._replace(batch=rows * stage.c.row),
                )

    def _share(self, way: _Way, cost: float) -> Array:
        """What each worker takes for its part."""
        counts = np.bincount(way.workers, minlength=self.workers)
        return np.where(counts > 0, TASK + (cost - TASK) * counts / way.workers.size, 0.0)

    def price(self, epoch: int, way: _Way, cost: float) -> float:
        """What a way costs: barriers it waits for, its longest task, the total work, and, on one
        worker, how much busier that one is than others."""
        share = self._share(way, cost)
        price = BARRIER * epoch + float(share.max()) + 0.1 * float(share.sum())
        if way.workers.size == 1 and epoch < len(self.costs):
            row = self.costs[epoch]
            price += 0.5 * float(row[way.workers[0]] - row.min())
        return price

    def add(self, i: int, way: _Way, epoch: int, cost: float) -> None:
        """Appends a stage's tasks."""
        while epoch >= len(self.costs):
            self.costs.append(np.zeros(self.workers))
        self.costs[epoch] = self.costs[epoch] + self._share(way, cost)
        if way.workers.size == 1:
            self.tasks.append(Task(i, None, int(way.workers[0]), epoch))
            return
        edges = np.flatnonzero(np.diff(way.workers)) + 1
        bounds = [0, *edges.tolist(), way.workers.size]
        for lo, hi in pairwise(bounds):
            cut = Cut(way.dim, lo, hi)
            self.tasks.append(Task(i, cut, int(way.workers[lo]), epoch))

    def owners(self) -> dict[int, tuple[tuple[int, int], ...]]:
        """The runs of private buffers."""
        found = {}
        for b, owner in self.ledger.owner.items():
            if owner.size == 0 or (owner == -2).any():
                continue
            step = self.ledger.grain[b] * self.plan.buffers[b].nbytes
            step //= max(self.plan.buffers[b].size, 1)
            starts = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist()]
            found[b] = tuple((int(a) * step, int(owner[a])) for a in starts)
        return found


def make_schedule(plan: Plan, workers: int) -> Schedule:
    """Tasks of all stages of `plan` for `workers` workers."""
    return Scheduler(plan, workers).run()


def describe_schedule(plan: Plan, schedule: Schedule) -> str:
    """A schedule as text: the tasks of each worker, epoch by epoch."""
    lines = []
    for epoch in range(schedule.epochs):
        if epoch:
            lines.append("--- barrier ---")
        for worker in range(schedule.workers):
            mine = [t for t in schedule.tasks if (t.epoch, t.worker) == (epoch, worker)]
            if mine:
                lines.append(f"epoch {epoch}, worker {worker}:")
            for task in mine:
                head = describe(plan.stages[task.stage]).split("\n")[0]
                part = f" [{task.cut.lo}:{task.cut.hi}] of dim {task.cut.dim}" if task.cut else ""
                lines.append(f"  {task.stage}: {head}{part}")
    return "\n".join(lines)
