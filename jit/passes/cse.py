"""Common subexpressions: equal calls on equal operands are computed once.

Ops are pure (random ones take their seed and offset as operands), so equal calls are equal
values.  Collectives stay apart: other ranks count them."""

from __future__ import annotations

from typing import Any

import numpy as np

from jit.graph import Builder, Graph, Node, Value


def _key(v: Value) -> Any:
    if not v.is_constant:
        return v
    # repr keeps -0.0, 0.0 and nan apart, and 1 from 1.0 and True
    data = v.constant.tobytes() if isinstance(v.constant, np.ndarray) else repr(v.constant)
    return v.shape, v.dtype, data


def cse(graph: Graph) -> Graph:
    """`graph` with every repeated call replaced by the first one."""
    seen: dict[Any, list[Value]] = {}

    def rewrite(builder: Builder, node: Node, inputs: list[Value]) -> list[Value] | None:
        if node.op.exchange is not None:
            return None
        attrs = tuple((k, repr(v)) for k, v in sorted(node.attrs.items()))
        key = (node.op.name, tuple(map(_key, inputs)), attrs)
        if key not in seen:
            types = [(v.shape, v.dtype) for v in node.outputs]
            seen[key] = builder.node(node.op, inputs, node.attrs, types)
        return seen[key]

    return graph.rebuild(rewrite)
