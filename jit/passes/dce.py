"""Dead code: calls none of whose results is needed.

Ops have no side effects; what a program writes is an output of its graph.  An index out of range
in a call whose result is never used is therefore not reported by compiled code.  Collectives stay:
other ranks wait for them."""

from __future__ import annotations

from jit.graph import Graph, Value


def dce(graph: Graph) -> Graph:
    """`graph` without the nodes no output depends on.  The inputs stay."""
    needed: set[Value] = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if node.op.exchange is not None or needed.intersection(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return Graph(graph.inputs, kept[::-1], graph.outputs).copy()
