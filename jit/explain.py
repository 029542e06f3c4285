"""`jit.explain`: what compiling a call would do, as text."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from jit.compile import Compiled
from jit.graph import Graph
from jit.program import Program
from jit.segments import Plan, opaque
from jit.tracer import Source


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Runs ``fn(*args, **kwargs)`` (once, with its side effects), compiles the trace, and says
    what was captured, how the graph was cut and why, and what became of the call."""
    inner = fn._fn if isinstance(fn, Compiled) else fn
    compiled = Compiled(inner, fullgraph=False, warmup=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled(*args, **kwargs)
    stats = compiled.stats()
    programs = compiled.programs()
    if not programs:
        return "\n".join([f"{compiled!r} stays eager:", *(f"  {r}" for r in stats.fallbacks)])
    return _program(repr(compiled), programs[-1])


def _program(name: str, program: Program) -> str:
    trace = program.trace
    lines = [f"{name}: compiled in {program.seconds:.3f} s"]
    lines.append("inputs:")
    for source, v in zip(trace.sources, trace.graph.inputs, strict=True):
        lines.append(f"  {v!r}  {_origin(source)}")
    for e in trace.effects:
        what = "written in place" if e.kind == "write" else "gets a .grad"
        target = trace.sources[e.target] if e.kind == "write" else trace.leaves[e.target]
        lines.append(f"effect: {_origin(target)} is {what}")
    lines += [f"guard: the value read at {g.where} is {g.value}" for g in trace.guards]
    lines += _plan("forward", trace.graph, program.plan)
    if program.backward is not None:
        lines += _plan("backward", None, program.backward)
    return "\n".join(lines)


def _origin(source: Source) -> str:
    if source.leaf is not None:
        return f".grad of {_origin(source.leaf)}"
    return f"argument {source.argument}" if source.argument >= 0 else "captured tensor"


def _plan(name: str, before: Graph | None, plan: Plan) -> list[str]:
    nodes = f"{len(plan.graph.nodes)} ops"
    if before is not None:
        nodes += f" ({len(before.nodes)} as traced)"
    lines = [f"{name}: {nodes}, {plan.launches} launches, {plan.eager_ops} eager ops"]
    for i, step in enumerate(plan.steps):
        if opaque(step.graph.nodes[0]):
            lines.append(f"  step {i}: {step.graph.nodes[0]!r}: opaque, runs eagerly")
            continue
        lines.append(f"  step {i}: one program of {len(step.graph.nodes)} ops")
        text = getattr(step.executable, "explain", lambda: "")()
        lines += [f"    {line}" for line in text.splitlines()]
    return lines
