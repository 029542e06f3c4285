"""The verifier of graphs: what every pass may rely on and must keep.

It runs after the tracer and after every pass while verification is on: with ``EAGER_VERIFY=1``
in the environment, or inside ``verifying()``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from jit.graph import Graph, Node, Value, infer

_on: ContextVar[bool] = ContextVar("verify", default=os.environ.get("EAGER_VERIFY", "") == "1")

_ATTR_TYPES = {"int": int, "bool": bool, "float": (int, float), "ints": tuple, "dtype": str}


class VerifyError(AssertionError):
    """A graph that breaks a rule of the IR; the message names the statement and the rule."""


@contextmanager
def verifying(on: bool = True) -> Iterator[None]:
    """Turns verification on (or off) for this context."""
    token = _on.set(on)
    try:
        yield
    finally:
        _on.reset(token)


def enabled() -> bool:
    """Whether graphs are verified after every pass."""
    return _on.get()


def verify(graph: Graph, *, types: bool = True) -> Graph:
    """Checks `graph` and gives it back.

    Every operand is a constant or defined before its use, by exactly one input or node; ids are
    unique; each node has the operands, attributes and outputs its op declares; and with `types`,
    shapes and dtypes are what the op itself infers on meta tensors.  Raises `VerifyError`.
    """
    defined: set[Value] = set()
    ids: set[int] = set()

    def define(v: Value, place: str) -> None:
        if v.is_constant:
            raise VerifyError(f"{place}: the constant {v!r} is defined like a variable")
        if v in defined or v.id in ids:
            raise VerifyError(f"{place}: {v!r} is defined twice")
        defined.add(v)
        ids.add(v.id)

    def use(vs: Sequence[Value], place: str) -> None:
        for v in vs:
            if not v.is_constant and v not in defined:
                raise VerifyError(f"{place}: {v!r} is used but not defined before")

    for v in graph.inputs:
        define(v, "inputs")
    for node in graph.nodes:
        place = repr(node)
        use(node.inputs, place)
        _check_call(node, place)
        if types:
            _check_types(node, place)
        for v in node.outputs:
            define(v, place)
    use(graph.outputs, "return")
    return graph


def _check_call(node: Node, place: str) -> None:
    op = node.op
    required = len(op.inputs) - op.variadic
    if len(node.inputs) < required or (len(node.inputs) > required and not op.variadic):
        raise VerifyError(f"{place}: {op.name} takes {required} inputs, not {len(node.inputs)}")
    names = [a.name for a in op.attrs]
    if sorted(node.attrs) != sorted(names):
        raise VerifyError(f"{place}: attributes {sorted(node.attrs)}, expected {sorted(names)}")
    for a in op.attrs:
        value = node.attrs[a.name]
        ok = isinstance(value, _ATTR_TYPES[a.type])  # type: ignore[arg-type]
        if a.type == "ints":
            ok = ok and all(type(i) is int for i in value)
        if not ok or (a.type == "int" and isinstance(value, bool)):
            raise VerifyError(f"{place}: attribute {a.name}={value!r} is not of type {a.type}")
    outputs = op.outputs or len(node.attrs["sizes"])
    if len(node.outputs) != outputs:
        raise VerifyError(f"{place}: {op.name} has {outputs} outputs, not {len(node.outputs)}")


def _check_types(node: Node, place: str) -> None:
    try:
        types = infer(node.op, node.inputs, node.attrs)
    except Exception as error:
        raise VerifyError(f"{place}: the op refuses these operands: {error}") from error
    for v, (shape, dtype) in zip(node.outputs, types, strict=True):
        if (v.shape, v.dtype) != (shape, dtype):
            raise VerifyError(f"{place}: the op infers {Value(v.id, shape, dtype)!r}")
