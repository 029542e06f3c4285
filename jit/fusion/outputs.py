"""Where results go: fresh tensors, or in place into the tensors a call overwrites."""

from __future__ import annotations

from collections.abc import Mapping

from eager.layout import Layout
from eager.ops.collectives import NO_PLAN
from jit.collective import IN_PLACE
from jit.fusion.tile import (
    Buffer,
    Exchange,
    Gemm,
    Load,
    Map,
    Plan,
    Reduce,
    Stage,
    Store,
    compute_dtype,
    reads,
    variable,
    writes,
)


def place_exchanges(plan: Plan) -> None:
    """Makes the collectives that work in place do so: in the source's memory if nobody reads that
    afterwards, else in a copy."""
    for stage in list(plan.stages):
        if not isinstance(stage, Exchange) or stage.collective not in IN_PLACE:
            continue
        old, new = stage.source, stage.target
        at = next(i for i, s in enumerate(plan.stages) if s is stage)
        later = any(b == old for s in plan.stages[at + 1 :] for b, *_ in [*reads(s), *writes(s)])
        returned = any(b == old for b, _, _ in plan.outputs)
        if plan.buffers[old].kind == "arena" and not later and not returned:
            _replace(plan, new, old)
        else:
            copy = _copy_stage(plan, old, new)
            plan.stages[at:at] = [copy] if copy is not None else []
            stage.source = new


def check_static(plan: Plan) -> None:
    """Raises NotImplementedError if a collective over static memory works elsewhere: something
    else in the program uses that memory."""
    exchanges = [s for s in plan.stages if isinstance(s, Exchange)]
    for stage in exchanges:
        if stage.plan != NO_PLAN and plan.buffers[stage.target].kind != "input":
            raise NotImplementedError(
                f"{stage.collective}: its static memory is used by another op of the program"
            )


def place_outputs(plan: Plan, targets: Mapping[int, int]) -> None:
    """Decides the memory of every result, in place.

    Args:
        plan: merged stages; results lie in "arena", "input" or "constant" buffers.
        targets: graph output -> the graph input that is overwritten with it.  Where a later read
            of the old value forbids writing it directly, it is copied at the end.
    """
    taken: set[int] = set()
    for i, (buffer, shape, dtype) in enumerate(plan.outputs):
        if i in targets:
            continue
        # results share memory neither with inputs nor with each other
        if plan.buffers[buffer].kind in ("constant", "input") or buffer in taken:
            buffer = _copy(plan, buffer, _new(plan, buffer, "output"))
            plan.outputs[i] = (buffer, shape, dtype)
        taken.add(buffer)
    final: list[tuple[int, int, int]] = []  # (output, source, target)
    overwritten = {plan.inputs[j] for j in targets.values()}
    for i, j in targets.items():
        source = plan.outputs[i][0]
        target = _input(plan, j, source)
        if source == target:
            continue
        if not _alias(plan, source, target):
            # another copy may overwrite the source before it is read
            snapshot = source in overwritten
            final.append((i, _copy(plan, source) if snapshot else source, target))
    for i, source, target in final:
        _, shape, dtype = plan.outputs[i]
        plan.outputs[i] = (_copy(plan, source, target), shape, dtype)
    for buffer, _, _ in plan.outputs:
        if plan.buffers[buffer].kind == "arena":
            plan.buffers[buffer].kind = "output"


def _new(plan: Plan, like: int, kind: str) -> int:
    model = plan.buffers[like]
    plan.buffers.append(Buffer(len(plan.buffers), model.dtype, model.size, kind, name=model.name))
    return len(plan.buffers) - 1


def _input(plan: Plan, j: int, like: int) -> int:
    """The buffer of graph input `j`, which the plan may not have accessed so far."""
    known = plan.inputs[j]
    if known is None:
        known = plan.inputs[j] = _new(plan, like, "input")
        plan.buffers[known].name = f"input {j}"
    return known


def _copy(plan: Plan, source: int, target: int | None = None) -> int:
    """Appends a stage that copies a whole buffer; gives the target, by default a new one."""
    made = _new(plan, source, "arena") if target is None else target
    stage = _copy_stage(plan, source, made)
    if stage is not None:
        plan.stages.append(stage)
    return made


def _copy_stage(plan: Plan, source: int, target: int) -> Map | None:
    buffer = plan.buffers[source]
    if not buffer.size:
        return None
    place = Layout.packed((buffer.size,))
    value = variable(0, compute_dtype(buffer.dtype))
    return Map((buffer.size,), [Load(source, place)], [Store(target, place, value)])


def dependencies(stages: list[Stage]) -> list[int]:
    """For each stage, the bit set of stages it must follow, directly or through others."""
    after: list[int] = []
    readers: dict[int, int] = {}
    writers: dict[int, int] = {}
    for i, stage in enumerate(stages):
        sources = {b for b, _, _ in reads(stage)}
        targets = {b for b, _ in writes(stage)}
        direct = 0
        for b in sources:
            direct |= writers.get(b, 0)
        for b in targets:
            direct |= writers.get(b, 0) | readers.get(b, 0)
        total, rest = direct, direct
        while rest:
            j = rest.bit_length() - 1
            total |= after[j]
            rest &= ~(1 << j) & ~after[j]
        after.append(total)
        for b in sources:
            readers[b] = readers.get(b, 0) | 1 << i
        for b in targets:
            writers[b] = writers.get(b, 0) | 1 << i
    return after


def _alias(plan: Plan, source: int, target: int) -> bool:
    """Renames `source` to `target` everywhere, if its one writer may overwrite the old value:
    every read of that can come before, or is of the very element being written."""
    new, old = plan.buffers[source], plan.buffers[target]
    if new.kind != "arena" or (new.dtype, new.size) != (old.dtype, old.size):
        return False
    if sum(b == source for b, _, _ in plan.outputs) != 1:
        return False
    if any(b == target for b, _, _ in plan.outputs):
        return False  # the old value is returned as well
    if not any(b == target for s in plan.stages for b, *_ in [*reads(s), *writes(s)]):
        _replace(plan, source, target)  # nobody wants the old value
        return True
    writers = [i for i, s in enumerate(plan.stages) if any(b == source for b, _ in writes(s))]
    if len(writers) != 1:
        return False
    (w,) = writers
    writer = plan.stages[w]
    if isinstance(writer, Exchange):
        return False
    if isinstance(writer, Gemm):
        if any(b == target for b, _, _ in reads(writer)):
            return False
    elif not _reads_only_what_it_writes(writer, source, target):
        return False
    after = dependencies(plan.stages)
    late = [
        r for r, s in enumerate(plan.stages) if r > w and any(b == target for b, _, _ in reads(s))
    ]
    if any(after[r] >> w & 1 for r in late):
        return False
    if late:
        # The writer, and what follows it, moves behind the last reader of the old value.
        last = late[-1]
        behind = [i for i in range(w, last + 1) if i == w or after[i] >> w & 1]
        before = [i for i in range(w, last + 1) if i not in behind]
        order = [*range(w), *before, *behind, *range(last + 1, len(plan.stages))]
        plan.stages = [plan.stages[i] for i in order]
    _replace(plan, source, target)
    return True


def _replace(plan: Plan, old: int, new: int) -> None:
    """Uses buffer `new` wherever `old` was."""
    for stage in plan.stages:
        _rename(stage, old, new)
    plan.outputs = [(new if b == old else b, s, d) for b, s, d in plan.outputs]


def _reads_only_what_it_writes(stage: Map | Reduce, source: int, target: int) -> bool:
    stores = [s for s in stage.stores if s.buffer == source]
    if len(stores) != 1:
        return False
    over_all = stage.loads if isinstance(stage, Reduce) else []
    at_point = stage.tail if isinstance(stage, Reduce) else stage.loads
    if any(x.buffer == target for x in over_all):
        return False
    layout = stores[0].layout
    return all(x.layout == layout and not x.terms for x in at_point if x.buffer == target)


def _rename(stage: Stage, old: int, new: int) -> None:
    if isinstance(stage, Gemm):
        for name in ("a", "b", "c"):
            matrix = getattr(stage, name)
            if matrix.buffer == old:
                setattr(stage, name, matrix._replace(buffer=new))
        return
    if isinstance(stage, Exchange):
        stage.source = new if stage.source == old else stage.source
        stage.target = new if stage.target == old else stage.target
        return

    def renamed(loads: list[Load]) -> list[Load]:
        return [x._replace(buffer=new) if x.buffer == old else x for x in loads]

    stage.loads = renamed(stage.loads)
    if isinstance(stage, Reduce):
        stage.tail = renamed(stage.tail)
    stage.stores = [s._replace(buffer=new) if s.buffer == old else s for s in stage.stores]
