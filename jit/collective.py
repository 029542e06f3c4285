"""Collectives in compiled programs: which ones a program can issue itself, and their words.

`eager.distributed` is imported when a graph holds a collective, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eager.ops.collectives import NO_PLAN, SELF
from jit.graph import Node

if TYPE_CHECKING:
    from jit.fusion.tile import Exchange

# Numbered as csrc/bind/exchange.h and csrc/comm/dtype.h do.
COLLECTIVES = ("all_reduce", "broadcast", "all_gather", "reduce_scatter")
DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool",
)  # fmt: skip
IN_PLACE = ("all_reduce", "broadcast")


def is_identity(node: Node) -> bool:
    """Whether a collective has this rank alone in its group."""
    return bool(node.attrs["group"] == SELF)


def compilable(node: Node) -> bool:
    """Whether a program can issue a node's collective: its group is a native one."""
    from eager.distributed import graph

    backend = graph.backend_of(node.attrs["group"])
    return node.op.exchange in COLLECTIVES and (backend is None or backend.address != 0)


def words(stage: Exchange) -> list[int]:
    """The words of the instruction; see csrc/bind/exchange.h."""
    from eager.distributed import graph

    backend = graph.backend_of(stage.group)
    assert backend is not None
    plan = 0
    if stage.plan != NO_PLAN:
        plan = graph.plan_by_number(stage.plan).plan.address
    return [
        COLLECTIVES.index(stage.collective), backend.address, plan, stage.reduction, stage.root,
        DTYPES.index(stage.dtype), stage.source, stage.target, stage.count,
    ]  # fmt: skip


def owners(stage: Exchange) -> list[Any]:
    """The objects whose addresses are among the words."""
    from eager.distributed import graph

    held: list[Any] = [graph.backend_of(stage.group)]
    if stage.plan != NO_PLAN:
        held.append(graph.plan_by_number(stage.plan))
    return held
