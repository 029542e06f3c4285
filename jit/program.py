"""A trace made runnable: compiled plans, what they read, and what is done with their results."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import eager
import eager.op
from eager.autograd import Function
from eager.errors import AutogradError, helpful
from jit import passes, segments
from jit.graph import eager_attrs, evaluate
from jit.passes.autodiff import differentiate, partition
from jit.pytree import Leaf, unflatten
from jit.tracer import Result, Source, Trace

_CLONE = eager.op.registry["clone"]


class Changed(Exception):
    """A value that Python had read came out different; nothing has been written yet."""


class Program:
    """One compiled trace.

    Attributes:
        trace: where it comes from.
        plan: the forward program.
        backward: the program of the gradients, if results need any.
        saved: what `backward` reads of the forward program; see `passes.autodiff.Partition`.
        wrt: inputs that get gradients.
        reached: for each of `wrt` whether a gradient reaches it.
        seconds: how long compiling took.
    """

    def __init__(self, trace: Trace, compiler: segments.Compiler, threads: int) -> None:
        start = time.perf_counter()
        self.trace = trace = prune(trace)
        self.backward: segments.Plan | None = None
        self.saved: list[tuple[str, int]] = []
        self.wrt = [i for i, r in enumerate(trace.requires) if r] if trace.differentiable else []
        self.reached: list[bool] = []
        writes = {} if trace.guards else _writable(trace)
        if trace.differentiable:
            joint, self.reached = differentiate(trace.graph, self.wrt, trace.differentiable)
            joint = passes.run(joint)
            split = partition(joint, len(trace.graph.inputs), len(trace.graph.outputs))
            self.saved = split.saved
            # what backward reads of the inputs must still be there
            kept = {i for kind, i in split.saved if kind == "input"}
            writes = {o: i for o, i in writes.items() if i not in kept}
            forward = split.forward
            self.backward = segments.build(split.backward, compiler, threads=threads)
        else:
            forward = passes.run(trace.graph)
        self.plan = segments.build(forward, compiler, threads=threads, writes=writes)
        self._prepare(trace)
        self.seconds = time.perf_counter() - start

    def _prepare(self, trace: Trace) -> None:
        """Sorts what every call does into short lists."""
        sources = trace.sources
        self._template = [s.tensor for s in sources]
        self._arguments = [(i, s.argument) for i, s in enumerate(sources) if s.argument >= 0]
        self._grads = [(i, s.leaf) for i, s in enumerate(sources) if s.leaf is not None]
        self._unpacked = [i for i, packed in enumerate(trace.packed) if not packed]
        self._unpacked += [i for i, _ in self._grads]
        writes = [(e.target, e.output) for e in trace.effects if e.kind == "write"]
        self._copies = [(i, o) for i, o in writes if o not in self.plan.donated]
        self._assigned = [(trace.leaves[e.target], e.output) for e in trace.effects
                          if e.kind == "grad"]  # fmt: skip
        self._views = [
            (trace.leaves[e.target], trace.views[e.output])
            for e in trace.effects
            if e.kind == "view"
        ]
        self._found = [(s, had) for s, had in zip(trace.leaves, trace.had_grad, strict=True)
                       if had is not None]  # fmt: skip
        self._flags = [
            (s.tensor, r) for s, r in zip(sources, trace.requires, strict=True)
            if s.tensor is not None and s.tensor.dtype.is_floating_point
        ]  # fmt: skip
        self._plain = len(trace.results) == 1 and trace.spec == Leaf(0)
        captured = {s.tensor._storage_id for s in sources if s.tensor is not None}
        self._captured = captured
        self._written = {
            self._template[i]._storage_id for i, _ in writes if self._template[i] is not None
        }
        self._writes_arguments = any(sources[i].argument >= 0 for i, _ in writes)

    def accepts(self, tensors: list[Any]) -> bool:
        """Whether captured tensors require grad, have a ``.grad`` and share memory with arguments
        as they did when traced."""
        for t, flag in self._flags:
            if t.requires_grad is not flag:
                return False
        for source, had in self._found:
            leaf = source.tensor if source.tensor is not None else tensors[source.argument]
            if (leaf.grad is not None) is not had:
                return False
        if self._written:
            for t in tensors:
                if t._storage_id in self._written:
                    return False
        if self._writes_arguments:
            blocks = {t._storage_id for t in tensors}
            return len(blocks) == len(tensors) and blocks.isdisjoint(self._captured)
        return True

    def run(self, tensors: list[Any]) -> Any:
        """What the function returns for these tensor arguments; raises `Changed`."""
        given = self._template.copy()
        for i, a in self._arguments:
            given[i] = tensors[a]
        for i, source in self._grads:
            given[i] = _resolve(source, tensors).grad
        inputs = given
        if self._unpacked:
            inputs = given.copy()
            for i in self._unpacked:
                inputs[i] = given[i].contiguous()
        if self.backward is None:
            outputs = self.plan.run(inputs)
        else:
            outputs = Attached.apply(self, inputs, *[given[i] for i in self.wrt])
        for guard in self.trace.guards:
            if outputs[guard.output].item() != guard.value:
                raise Changed
        if self._copies:
            with eager.no_grad():
                for i, o in self._copies:
                    eager.op.execute(_CLONE, (outputs[o],), {}, given[i])
        for source, o in self._assigned:
            _resolve(source, tensors).grad = outputs[o] if o >= 0 else None
        for source, view in self._views:
            _resolve(source, tensors).grad = _result(view, given, outputs)
        results = self.trace.results
        if self._plain:
            return _result(results[0], given, outputs)
        return unflatten(self.trace.spec, [_result(r, given, outputs) for r in results])


def _resolve(source: Source | None, tensors: list[Any]) -> Any:
    assert source is not None
    return source.tensor if source.tensor is not None else tensors[source.argument]


def _result(r: Result, given: list[Any], outputs: Any) -> Any:
    if r.output >= 0:
        t = outputs[r.output]
    elif r.source >= 0:
        t = given[r.source]
    else:
        return r.value
    for view in r.views:
        t = eager.op.execute(view.op, (t,), eager_attrs(view.op, view.attrs))
        t = t[view.output] if isinstance(t, tuple) else t
    return t


def prune(trace: Trace) -> Trace:
    """`trace` without dead code and without the inputs that only dead code reads."""
    graph = passes.dce(trace.graph)
    used = {v for node in graph.nodes for v in node.inputs}.union(graph.outputs)
    named = {e.target for e in trace.effects if e.kind == "write"}
    named.update(r.source for r in [*trace.results, *trace.views])
    kept = [i for i, v in enumerate(graph.inputs) if v in used or i in named]
    place = {old: new for new, old in enumerate(kept)}
    graph.inputs = [graph.inputs[i] for i in kept]
    return replace(
        trace,
        graph=graph,
        sources=[trace.sources[i] for i in kept],
        effects=[
            e._replace(target=place[e.target]) if e.kind == "write" else e for e in trace.effects
        ],
        results=[replace(r, source=place[r.source]) if r.source >= 0 else r for r in trace.results],
        views=[replace(r, source=place[r.source]) for r in trace.views],
        requires=[trace.requires[i] for i in kept],
        packed=[trace.packed[i] for i in kept],
    )


def _writable(trace: Trace) -> dict[int, int]:
    """The writes that a program may do itself: to packed tensors whose identity is guarded."""
    return {
        e.output: e.target
        for e in trace.effects
        if e.kind == "write" and trace.packed[e.target] and trace.sources[e.target].leaf is None
    }


class Attached(Function):
    """The one entry on the tape that a compiled forward function leaves."""

    @staticmethod
    def forward(ctx: Any, program: Program, inputs: list[Any], *_wrt: Any) -> tuple[Any, ...]:
        """Runs the forward program; `_wrt` are the inputs the tape is to know of."""
        outputs = program.plan.run(inputs)
        count = len(program.trace.graph.outputs)
        # an output is saved as an alias: the output itself would keep its own history alive
        ctx.save_for_backward(
            *(inputs[i] if kind == "input" else outputs[i].detach() for kind, i in program.saved)
        )
        ctx.program = program
        ctx.inputs = inputs
        ctx.versions = [t._version for t in inputs]
        primal = outputs[:count]
        wanted = set(program.trace.differentiable)
        ctx.mark_non_differentiable(*(t for i, t in enumerate(primal) if i not in wanted))
        return tuple(primal)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """Runs the backward program; for a graph of the gradient, eager ops."""
        program: Program = ctx.program
        seeds = [grads[i] for i in program.trace.differentiable]
        if eager.is_grad_enabled():
            return (None, None, *_differentiable_gradients(ctx, program, seeds))
        assert program.backward is not None
        values = iter(program.backward.run([*ctx.saved_tensors, *(g.contiguous() for g in seeds)]))
        return (None, None, *(next(values) if r else None for r in program.reached))


def _differentiable_gradients(ctx: Any, program: Program, seeds: list[Any]) -> Iterable[Any]:
    """The gradients by eager ops, which record how to differentiate them again."""
    changed = [t for t, v in zip(ctx.inputs, ctx.versions, strict=True) if t._version != v]
    if changed:
        raise helpful(
            AutogradError, "jit.compile",
            "a tensor that the compiled function read was changed before create_graph=True",
            expected="inputs as they were in the forward call",
            given=f"a changed tensor of shape {tuple(changed[0].shape)}",
            hint="call the function eagerly where second derivatives are needed",
        )  # fmt: skip
    outputs = evaluate(program.trace.graph, ctx.inputs)
    targets = [ctx.inputs[i] for i in program.wrt]
    gradients: Iterable[Any] = eager.autograd.grad(
        [outputs[i] for i in program.trace.differentiable], targets, seeds,
        create_graph=True, allow_unused=True,
    )  # fmt: skip
    return gradients
