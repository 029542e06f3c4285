"""The fusion compiler: graph -> stages -> schedule -> program.

`jit.fusion.lower`, `merge` and `outputs` turn a graph into a `tile.Plan`; `schedule` cuts it into
tasks for workers; `memory` and `program` produce the tables that `jit.runtime` launches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jit.fusion.lower import lower_graph
from jit.fusion.merge import merge_stages
from jit.fusion.outputs import check_static, place_exchanges, place_outputs
from jit.fusion.program import Program, assemble
from jit.fusion.schedule import make_schedule
from jit.fusion.tile import Plan
from jit.graph import Graph

if TYPE_CHECKING:
    from jit.runtime.cpu import Executable

# Nanoseconds that more workers must save.  Waiting for a worker whose core another process holds
# took 85 to 210 microseconds when measured; a shorter program is steadier on one.
WORTHWHILE = 100_000.0

__all__ = ["build_plan", "build_program", "compile_segment"]


def build_plan(graph: Graph, writes: Mapping[int, int] | None = None) -> Plan:
    """The merged stages of `graph`.  `writes`: output -> input that is overwritten with it.

    Raises:
        NotImplementedError: the graph holds an opaque op, or a collective over static memory
            that cannot be written in place.
    """
    plan = lower_graph(graph)
    merge_stages(plan)
    place_exchanges(plan)
    place_outputs(plan, writes or {})
    check_static(plan)
    return plan


def build_program(
    graph: Graph, *, workers: int, writes: Mapping[int, int] | None = None
) -> Program:
    """The program of `graph` for `workers` workers, whatever they are."""
    plan = build_plan(graph, writes)
    return assemble(plan, make_schedule(plan, workers))


def compile_segment(
    graph: Graph, *, threads: int, writes: Mapping[int, int] | None = None
) -> Executable:
    """Compiles a graph without opaque ops for the CPU.

    Args:
        graph: a verified graph.
        threads: workers there are; one is used if all of them would save less than `WORTHWHILE`.
        writes: output -> graph input whose memory it overwrites.
    """
    from jit.runtime.cpu import Executable

    program = build_program(graph, workers=threads, writes=writes)
    if threads > 1:
        alone = build_program(graph, workers=1, writes=writes)
        if alone.schedule.nanoseconds - program.schedule.nanoseconds < WORTHWHILE:
            program = alone
    return Executable(program)
