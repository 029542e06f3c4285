"""The memory plan: where each intermediate lies in the one arena.

Two buffers may share memory when no task can access one while it still holds the other: a
barrier stands between their last and first accesses, or, within an epoch, every byte of both is
accessed by the same one worker, which runs its tasks in order.
"""

from __future__ import annotations

from jit.fusion.schedule import Schedule
from jit.fusion.tile import Plan

ALIGN = 64


def plan_memory(plan: Plan, schedule: Schedule) -> tuple[dict[int, int], int]:
    """(byte offset of each arena buffer, size of the arena)."""
    live = [b for b in plan.buffers if b.kind == "arena" and b.id in schedule.span]
    offsets: dict[int, int] = {}
    total = 0
    for buffer in sorted(live, key=lambda b: (-b.nbytes, schedule.span[b.id][2])):
        size = _rounded(buffer.nbytes)
        # Places taken at the same time, and places that fit only if taken over whole.
        blocked, exact = [], []
        for other, start in offsets.items():
            relation = _relation(schedule, buffer.id, other)
            end = start + _rounded(plan.buffers[other].nbytes)
            if relation == "apart":
                blocked.append((start, end))
            elif relation == "in place":
                exact.append((start, end))
        candidates = sorted({0, *(end for _, end in blocked), *(s for s, _ in exact)})
        for start in candidates:
            end = start + size
            free = all(end <= a or b <= start for a, b in blocked)
            whole = all(end <= a or b <= start or (a, b) == (start, end) for a, b in exact)
            if free and whole:
                break
        else:
            start = max(end for _, end in [*blocked, *exact])
        offsets[buffer.id] = start
        total = max(total, start + size)
    return offsets, total


def _rounded(nbytes: int) -> int:
    return -(-max(nbytes, 1) // ALIGN) * ALIGN


def _relation(schedule: Schedule, a: int, b: int) -> str:
    """ "free": may overlap anyhow; "in place": only exactly, byte on byte; "apart": never."""
    first, last, from_stage, to_stage = schedule.span[a]
    first_b, last_b, from_b, to_b = schedule.span[b]
    if last < first_b or last_b < first:
        return "free"
    if to_stage < from_b or to_b < from_stage:
        owners = schedule.owners.get(a)
        if owners is not None and owners == schedule.owners.get(b):
            ordered = last <= first_b if to_stage < from_b else last_b <= first
            return "in place" if ordered else "apart"
    return "apart"
