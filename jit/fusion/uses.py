"""Which values of a graph are worth storing, and which are computed where they are used."""

from __future__ import annotations

from collections import defaultdict

from eager.scalar import vocabulary
from jit.fusion.lazy import size
from jit.fusion.scalars import evaluate
from jit.fusion.tile import compute_dtype
from jit.graph import Graph, Node, Value

# Storing a value and reading it back costs about as much as this many additions.
STORE_COST = 6
# What costs no more than this is computed wherever it is used.
CHEAP = 2
# Beyond this cost an expression is stored rather than grown further.
LARGEST = 400


def _own_cost(node: Node) -> int:
    """What one point of an elementwise node costs, without its operands."""
    args = [vocabulary.arg(f"a{i}", compute_dtype(v.dtype)) for i, v in enumerate(node.inputs)]
    roots = evaluate(node, args, vocabulary.arg("i", "int64"))
    return max(size(e) for e in roots)


def stored_values(graph: Graph) -> set[Value]:
    """The results of elementwise nodes that get memory of their own.

    A value is stored when something needs it in memory (a matrix product, or being returned), or
    when computing it at each use costs more than one store and its loads.  ``evaluations`` counts
    how often a value would be computed, relative to its size: a value that is sliced into four
    parts, each used once, is still computed once.
    """
    costs = _costs(graph)
    evaluations: dict[Value, float] = defaultdict(float)
    in_memory: set[Value] = {v for v in graph.outputs if not v.is_constant}
    stored: set[Value] = set()
    for node in reversed(graph.nodes):
        elementwise = node.op.body is not None
        if elementwise:
            for v in node.outputs:
                again = evaluations[v] - 1.0
                cheap = costs[v] <= CHEAP or again * costs[v] <= STORE_COST
                expensive = again > 0.01 and not cheap
                if v in in_memory or expensive or costs[v] > LARGEST:
                    stored.add(v)
        for v in node.inputs:
            if v.is_constant:
                continue
            if node.op.contract or node.op.exchange is not None:
                in_memory.add(v)
            elif node.op.view is not None:
                if any(out in in_memory for out in node.outputs):
                    in_memory.add(v)
                for out in node.outputs:
                    evaluations[v] += evaluations[out] * out.numel / max(v.numel, 1)
            elif elementwise:
                times = max(1.0 if out in stored else evaluations[out] for out in node.outputs)
                evaluations[v] += times * node.outputs[0].numel / max(v.numel, 1)
            else:
                evaluations[v] += 1.0
    return stored


def _costs(graph: Graph) -> dict[Value, int]:
    """What computing one element from values in memory costs, about."""
    costs: dict[Value, int] = defaultdict(int)
    users = graph.users()
    own: dict[object, int] = {}
    for node in graph.nodes:
        total = 0
        if node.op.body is not None:
            key = (node.op.name, tuple(v.dtype for v in node.inputs), repr(node.attrs))
            if key not in own:
                own[key] = _own_cost(node)
            total = own[key]
        elif node.op.view is None:
            continue
        for v in node.inputs:
            shared = len(users.get(v, ())) > 1 and costs[v] > STORE_COST
            total += 1 if shared else costs[v]
        costs.update(dict.fromkeys(node.outputs, total))
    return costs
