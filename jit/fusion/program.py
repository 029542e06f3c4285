"""Assembles a scheduled plan into the tables that the runtimes interpret."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jit.fusion.bodies import Body, Coder
from jit.fusion.memory import plan_memory
from jit.fusion.schedule import Schedule
from jit.fusion.tile import Plan


@dataclass(eq=False, slots=True)
class Program:
    """What a runtime needs to launch a plan.

    Attributes:
        plan, schedule: where it comes from.
        bodies: to be compiled; body ``i`` has number ``i + FIRST`` (see `jit.fusion.bodies`).
        words: the instruction table.
        starts: ``words[starts[e * workers + w]:starts[e * workers + w + 1]]`` are the
            instructions of worker w in epoch e.
        workers, epochs: as in the schedule.
        offsets: byte offset in the arena of each arena buffer.
        arena: bytes.
    """

    plan: Plan
    schedule: Schedule
    bodies: list[Body]
    words: np.ndarray[Any, np.dtype[np.int64]]
    starts: np.ndarray[Any, np.dtype[np.int64]]
    workers: int
    epochs: int
    offsets: dict[int, int]
    arena: int


def assemble(plan: Plan, schedule: Schedule) -> Program:
    """Encodes every task and plans the memory."""
    coder = Coder(plan.buffers)
    words: list[int] = []
    starts = [0]
    lists: dict[tuple[int, int], list[int]] = {}
    for task in schedule.tasks:
        code = coder.encode(plan.stages[task.stage], task.cut)
        lists.setdefault((task.epoch, task.worker), []).extend(code)
    for epoch in range(schedule.epochs):
        for worker in range(schedule.workers):
            words += lists.get((epoch, worker), [])
            starts.append(len(words))
    offsets, arena = plan_memory(plan, schedule)
    return Program(
        plan, schedule, coder.bodies, np.array(words, np.int64), np.array(starts, np.int64),
        schedule.workers, schedule.epochs, offsets, arena,
    )  # fmt: skip


def without_barrier(schedule: Schedule, index: int) -> Schedule:
    """A schedule that leaves out its barrier `index`: wrong on purpose, to test that tests
    notice."""
    if not 0 <= index < schedule.epochs - 1:
        raise ValueError(f"barrier {index} of {schedule.epochs - 1}")
    tasks = [t._replace(epoch=t.epoch - (t.epoch > index)) for t in schedule.tasks]
    return replace(schedule, tasks=tasks, epochs=schedule.epochs - 1)
