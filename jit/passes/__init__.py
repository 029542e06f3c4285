"""Transformations ``Graph -> Graph``, and the order in which they run.

    trace -> [autodiff] -> simplify -> cse -> dce -> segments

Each keeps the inputs and the outputs of the graph; `autodiff` is the exception that adds some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jit import debug, verify
from jit.graph import Graph
from jit.passes.cse import cse
from jit.passes.dce import dce
from jit.passes.simplify import simplify

__all__ = ["PIPELINE", "Pass", "cse", "dce", "run", "simplify"]

Pass = Callable[[Graph], Graph]

# dce first: rules look at single producers, and need not look at what is thrown away
PIPELINE: Mapping[str, Pass] = MappingProxyType(
    {"dce": dce, "simplify": simplify, "cse": cse, "clean": dce}
)


def run(graph: Graph, pipeline: Mapping[str, Pass] = PIPELINE) -> Graph:
    """`graph` after every pass of `pipeline` in turn, each verified when verification is on."""
    if verify.enabled():
        verify.verify(graph)
    debug.show(1, "graph", graph)
    for name, transform in pipeline.items():
        graph = transform(graph)
        debug.show(2, f"after {name}", graph)
        if verify.enabled():
            verify.verify(graph)
    return graph
