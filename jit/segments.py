"""Cuts a graph at opaque ops into segments that each become one program, and runs the pieces.

A *segment* holds as many nodes as possible: nodes get the number of opaque calls on the longest
path that leads to them, and those of one number and no opaque call between them are one segment.
Opaque calls run eagerly between segments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import eager.op
from jit import collective
from jit.graph import Builder, Graph, Node, Value, array, evaluate, numpy_dtype


class Executable(Protocol):
    """A compiled segment.

    Attributes:
        launches: programs started per run.
    """

    launches: int

    def run(self, inputs: list[Any]) -> list[Any]:
        """Computes the outputs from contiguous tensors of the graph's input types.

        Outputs are fresh tensors, except those named by the `writes` given at compilation, which
        are written into that input's memory when all reads of it are done."""


Compiler = Callable[..., Executable]


def opaque(node: Node) -> bool:
    """Whether only the op's own kernel can run it."""
    op = node.op
    if op.exchange is not None:
        return not collective.compilable(node)
    lowering = (op.body, op.reduce, op.view, op.regions, op.pull)
    return not op.contract and all(x is None for x in lowering)


@dataclass(eq=False, slots=True)
class Step:
    """One piece of a plan.

    Attributes:
        graph: what it computes.
        inputs: slots of the graph's inputs.
        outputs: slots of the graph's outputs.
        executable: of a segment, once compiled; None: the graph is one call, run eagerly.
        writes: of a segment: output -> input whose memory it takes.
        drop: slots nobody needs afterwards.
    """

    graph: Graph
    inputs: list[int]
    outputs: list[int]
    executable: Executable | None = None
    writes: dict[int, int] = field(default_factory=dict)
    drop: list[int] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Plan:
    """Steps over numbered slots; the first slots are the inputs.

    Attributes:
        graph: what it computes.
        steps: in order of execution.
        results: the slot of each output.
        slots: their number.
        donated: outputs that were written into an input's memory.
        cuts: (op, user's file:line) of each opaque call, for explanations.
    """

    graph: Graph
    steps: list[Step]
    results: list[int]
    slots: int
    donated: dict[int, int]
    cuts: list[tuple[str, str]]

    @property
    def launches(self) -> int:
        """Programs started per run."""
        return sum(s.executable.launches for s in self.steps if s.executable is not None)

    @property
    def eager_ops(self) -> int:
        """Eager calls per run."""
        return sum(s.executable is None for s in self.steps)

    def run(self, inputs: list[Any]) -> list[Any]:
        """The outputs; `inputs` are contiguous tensors of the graph's input types."""
        if len(self.steps) == 1 and self.steps[0].executable is not None:
            return self.steps[0].executable.run(inputs)
        slots = inputs + [None] * (self.slots - len(inputs))
        for step in self.steps:
            arguments = [slots[i] for i in step.inputs]
            if step.executable is not None:
                values = step.executable.run(arguments)
            else:
                values = [v.contiguous() for v in evaluate(step.graph, arguments)]
            for i, value in zip(step.outputs, values, strict=True):
                slots[i] = value
            for i in step.drop:
                slots[i] = None
        return [slots[i] for i in self.results]


def materialise(graph: Graph) -> Graph:
    """`graph` with every output made by a node, and none twice: inputs, constants and repeated
    outputs are cloned."""
    clone = eager.op.registry["clone"]
    builder = Builder()
    new = {v: builder.input(v.shape, v.dtype) for v in graph.inputs}
    for node in graph.nodes:
        builder.where = node.where
        inputs = [v if v.is_constant else new[v] for v in node.inputs]
        types = [(v.shape, v.dtype) for v in node.outputs]
        new.update(zip(node.outputs, builder.node(node.op, inputs, node.attrs, types), strict=True))
    taken = set(builder.graph.inputs)
    outputs = []
    for old in graph.outputs:
        v = _strong(old) if old.is_constant else new[old]
        if v.is_constant or v in taken:
            v = builder.node(clone, [v], {}, [(v.shape, v.dtype)])[0]
        taken.add(v)
        outputs.append(v)
    return builder.build(outputs)


def _strong(v: Value) -> Value:
    """A constant that no longer promotes like a Python number."""
    return array(numpy_dtype(v.dtype).type(v.constant)) if v.weak else v


def levels(graph: Graph) -> dict[Node, int]:
    """How many opaque calls must have run before each node's segment."""
    level: dict[Node, int] = {}
    maker = graph.producers()
    exchange: list[Node] = []  # the collective before: all ranks make them in one order
    for node in graph.nodes:
        cut = opaque(node)
        before = [maker[v] for v in node.inputs if v in maker]
        if node.op.exchange is not None:
            before += exchange
            exchange = [node]
        level[node] = max(
            (level[m] + (opaque(m) and not cut) for m in before),
            default=0,
        )
    return level


def build(
    graph: Graph,
    compiler: Compiler,
    *,
    threads: int,
    writes: Mapping[int, int] | None = None,
) -> Plan:
    """Cuts `graph` and compiles its segments with `compiler`.

    Args:
        graph: any verified graph.
        compiler: ``compiler(graph, threads=..., writes=...) -> Executable``.
        threads: workers to schedule for.
        writes: output -> input whose memory it may take.  Those that cannot be done without
            disturbing a later step are left out of `Plan.donated`; the caller copies them.
    """
    graph = materialise(graph)
    level = levels(graph)
    order = sorted(graph.nodes, key=lambda n: (level[n], opaque(n)))
    slot: dict[Value, int] = {v: i for i, v in enumerate(graph.inputs)}
    for node in order:
        for v in node.outputs:
            slot[v] = len(slot)
    groups: list[list[Node]] = []
    for node in order:
        if opaque(node) or not groups or not _extends(groups[-1], node, level):
            groups.append([])
        groups[-1].append(node)
    last = {v: i for i, group in enumerate(groups) for node in group for v in node.inputs}
    last.update(dict.fromkeys(graph.outputs, len(groups)))
    if len(groups) == 1 and not opaque(groups[0][0]):
        everything = [slot[v] for v in graph.inputs], [slot[v] for v in graph.outputs]
        steps = [Step(graph, *everything)]
    else:
        steps = [_step(group, i, last, slot) for i, group in enumerate(groups)]
    cuts = [(n.op.name, n.where) for n in order if opaque(n)]
    plan = Plan(graph, steps, [slot[v] for v in graph.outputs], len(slot), {}, cuts)
    _donate(plan, writes or {})
    for step in steps:
        if not opaque(step.graph.nodes[0]):
            step.executable = compiler(step.graph, threads=threads, writes=step.writes)
    return plan


def _extends(group: list[Node], node: Node, level: Mapping[Node, int]) -> bool:
    """Whether a fusable node belongs to the segment that is being collected."""
    return not opaque(group[-1]) and level[group[-1]] == level[node]


def _step(group: list[Node], at: int, last: Mapping[Value, int], slot: Mapping[Value, int]) -> Step:
    """The step of one opaque call or of a segment's nodes."""
    made = dict.fromkeys(v for node in group for v in node.outputs)
    used = dict.fromkeys(v for node in group for v in node.inputs if not v.is_constant)
    inputs = [v for v in used if v not in made]
    outputs = [v for v in made if last.get(v, at) > at or opaque(group[0])]
    return Step(
        Graph(inputs, group, outputs).copy(),
        [slot[v] for v in inputs],
        [slot[v] for v in outputs],
        drop=[slot[v] for v in (*inputs, *outputs) if last.get(v, at) <= at],
    )


def _donate(plan: Plan, writes: Mapping[int, int]) -> None:
    """Lets a segment write an output into an input's memory if no later step reads the input."""
    for output, target in writes.items():
        made = plan.results[output]
        at = next(i for i, s in enumerate(plan.steps) if made in s.outputs)
        step = plan.steps[at]
        read_later = any(target in s.inputs for s in plan.steps[at + 1 :])
        if opaque(step.graph.nodes[0]) or read_later or target not in step.inputs:
            continue
        step.writes[step.outputs.index(made)] = step.inputs.index(target)
        plan.donated[output] = target
