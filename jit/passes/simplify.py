"""Local rewrites, as a table of rules.

A rule replaces a call by an existing value or by a simpler call.  Only rewrites that keep every
bit are in the table, NaN, infinities and signed zeros included (NaN payloads excepted); hence
``x + 0.0`` stays (it turns -0.0 into 0.0) while ``x - 0.0`` goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import eager.op
from eager.op import Kind
from jit.graph import Builder, Graph, Node, Number, Shape, Value, array, evaluate, scalar

FOLD_LIMIT = 16  # elements of a constant that folding may create


class Site(NamedTuple):
    """A call about to be copied to the new graph.

    Attributes:
        node: the call; its outputs' shapes and dtypes are right, its operands are stale.
        inputs: its operands in the new graph, already simplified.
        builder: appends calls to the new graph.
        makers: the node of the new graph that made each value.
    """

    node: Node
    inputs: list[Value]
    builder: Builder
    makers: dict[Value, Node]

    @property
    def attrs(self) -> dict[str, Any]:
        """The call's attributes."""
        return self.node.attrs

    def maker(self, v: Value, name: str) -> Node | None:
        """The call of op `name` that made `v`, if one did."""
        node = self.makers.get(v)
        return node if node is not None and node.op.name == name else None

    def call(self, name: str, inputs: Sequence[Value], **attrs: Any) -> Value:
        """Appends a call with the type of this one's output."""
        out = self.node.output
        return self.call_typed(name, inputs, (out.shape, out.dtype), **attrs)

    def call_typed(
        self, name: str, inputs: Sequence[Value], kind: tuple[Shape, str], **attrs: Any
    ) -> Value:
        """Appends a call whose output has the shape and dtype `kind`."""
        (value,) = self.builder.node(eager.op.registry[name], inputs, attrs, [kind])
        self.makers[value] = self.builder.graph.nodes[-1]
        return value

    def same(self, v: Value) -> Value | None:
        """`v` if it can stand for the result: equal in shape and dtype and not a weak scalar."""
        out = self.node.output
        return v if (v.shape, v.dtype) == (out.shape, out.dtype) and not v.weak else None

    def uniform(self, v: Value) -> Number | None:
        """The number every element of `v` is equal to, if that is known."""
        if isinstance(v.constant, np.ndarray):
            return v.constant.item() if v.numel == 1 else None
        if v.constant is not None:
            return v.constant
        node = self.makers.get(v)
        if node is None:
            return None
        if node.op.name in ("full", "full_int") and not node.inputs:
            value: Number = node.attrs["value"]
            return value
        if node.op.name in ("expand", "reshape"):
            return self.uniform(node.inputs[0])
        return None


Rule = Callable[[Site], "Value | None"]


def _unit(right: Number, left: Number | None = None) -> Rule:
    """``op(x, right) = x`` and ``op(left, x) = x``; zeros must agree in sign if x is floating."""

    def rule(site: Site) -> Value | None:
        x, y = site.inputs
        floating = site.node.output.dtype in _FLOATS
        for unit, other, kept in ((right, y, x), (left, x, y)):
            number = site.uniform(other)
            if number is None or unit is None or number != unit:
                continue
            if floating and math.copysign(1.0, number) != math.copysign(1.0, unit):
                continue
            if site.same(kept):
                return kept
        return None

    return rule


def _involution(site: Site) -> Value | None:
    """``op(op(x)) = x``."""
    inner = site.maker(site.inputs[0], site.node.op.name)
    return site.same(inner.inputs[0]) if inner else None


def _identity(site: Site) -> Value | None:
    """The operand itself, where the call does not change shape and dtype."""
    return site.same(site.inputs[0])


def _idempotent(site: Site) -> Value | None:
    """``op(x, x) = x``."""
    x, y = site.inputs
    return site.same(x) if x is y else None


def _over(*names: str) -> Rule:
    """The last of a chain of calls decides alone."""

    def rule(site: Site) -> Value | None:
        for name in names:
            inner = site.maker(site.inputs[0], name)
            if inner:
                return site.call(site.node.op.name, inner.inputs, **site.attrs)
        return None

    return rule


def _permute_permute(site: Site) -> Value | None:
    inner = site.maker(site.inputs[0], "permute")
    if not inner:
        return None
    dims = tuple(inner.attrs["dims"][d] for d in site.attrs["dims"])
    return site.call("permute", inner.inputs, dims=dims)


def _permute_identity(site: Site) -> Value | None:
    dims = site.attrs["dims"]
    return site.inputs[0] if dims == tuple(range(len(dims))) else None


def _slice_whole(site: Site) -> Value | None:
    x, a = site.inputs[0], site.attrs
    return site.same(x) if a["sizes"] == x.shape and not a["drop"] else None


def _slice_slice(site: Site) -> Value | None:
    inner = site.maker(site.inputs[0], "slice")
    if not inner or inner.attrs["drop"]:
        return None
    a, b = inner.attrs, site.attrs
    starts = zip(a["starts"], b["starts"], a["steps"], strict=True)
    return site.call(
        "slice",
        inner.inputs,
        starts=tuple(i + j * k for i, j, k in starts),
        sizes=b["sizes"],
        steps=tuple(j * k for j, k in zip(a["steps"], b["steps"], strict=True)),
        drop=b["drop"],
    )


def _slice_split(site: Site) -> Value | None:
    inner = site.maker(site.inputs[0], "split")
    if not inner:
        return None
    at, dim = inner.outputs.index(site.inputs[0]), inner.attrs["dim"]
    starts = list(site.attrs["starts"])
    starts[dim] += sum(inner.attrs["sizes"][:at])
    return site.call("slice", inner.inputs, **{**site.attrs, "starts": tuple(starts)})


def _cast_cast(site: Site) -> Value | None:
    """A cast that loses nothing, followed by another."""
    inner = site.maker(site.inputs[0], "cast")
    if not inner:
        return None
    x = inner.inputs[0]
    if x.weak or not _lossless(x.dtype, inner.attrs["dtype"]):
        return None
    return site.same(x) or site.call("cast", [x], dtype=site.attrs["dtype"])


# mantissa bits (with the implicit one) and exponent range; integers: bits, exactly
_FLOATS = {"float64": (53, 1024), "float32": (24, 128), "bfloat16": (8, 128), "float16": (11, 16)}
_INTS = {"bool": 1, "uint8": 8, "int8": 8, "int16": 16, "int32": 32, "int64": 64}


def _lossless(source: str, target: str) -> bool:
    """Whether every value of `source` is one of `target`."""
    if source == target or source == "bool":
        return True
    if source in _FLOATS:
        return target in _FLOATS and all(
            a <= b for a, b in zip(_FLOATS[source], _FLOATS[target], strict=True)
        )
    if target in _FLOATS:  # |int| <= 2^bits must be exact and finite
        return _INTS[source] <= _FLOATS[target][0]
    if target == "bool" or (target == "uint8" and source != "uint8"):
        return False
    return _INTS[source] < _INTS[target] or (source != "uint8" and _INTS[source] <= _INTS[target])


def _where_constant(site: Site) -> Value | None:
    """``where(True, x, y) = x``."""
    condition, x, y = site.inputs
    chosen = site.uniform(condition)
    return None if chosen is None else site.same(x if chosen else y)


def _where_same(site: Site) -> Value | None:
    _, x, y = site.inputs
    return site.same(x) if x is y else None


def _one_piece(site: Site) -> Value | None:
    """Gluing or cutting into a single piece."""
    return site.same(site.inputs[0]) if len(site.inputs) == 1 else None


def _reduce_nothing(site: Site) -> Value | None:
    """A fold over dimensions of size 1 that keeps them.  (``sum`` may turn -0.0 into 0.0.)"""
    return site.same(site.inputs[0])


def _scatter_one(site: Site) -> Value | None:
    """Adding one element per line along `dim`: a comparison of positions instead of a scatter.

    Only where a gather with the same index has checked its range."""
    x, index, src = site.inputs
    dim = site.attrs["dim"]
    size = x.shape[dim]
    one = tuple(1 if d == dim else n for d, n in enumerate(x.shape))
    checked = any(
        n.op.name == "gather"
        and n.inputs[1] is index
        and n.attrs["dim"] == dim
        and n.inputs[0].shape[dim] == size
        for n in site.builder.graph.nodes
    )
    if not (checked and index.shape == src.shape == one and x.dtype == src.dtype):
        return None
    line = tuple(size if d == dim else 1 for d in range(len(x.shape)))
    places = site.call_typed(
        "arange_int", [], ((size,), "int64"), start=0, step=1, shape=(size,), dtype="int64"
    )
    places = site.call_typed("reshape", [places], (line, "int64"), shape=line)
    wrapped = site.call_typed("add", [index, scalar(size)], (one, "int64"))
    negative = site.call_typed("lt", [index, scalar(0)], (one, "bool"))
    wrapped = site.call_typed("where", [negative, wrapped, index], (one, "int64"))
    hit = site.call_typed("eq", [places, wrapped], (x.shape, "bool"))
    added = site.call_typed("add", [x, src], (x.shape, x.dtype))
    return site.call("where", [hit, added, x])


RULES: tuple[tuple[str, Rule], ...] = (
    ("mul", _unit(1, 1)),
    ("div", _unit(1)),
    ("add", _unit(-0.0, -0.0)),
    ("sub", _unit(0.0)),
    ("neg", _involution),
    ("bitwise_not", _involution),
    ("maximum", _idempotent),
    ("minimum", _idempotent),
    ("clone", _identity),
    ("detach", _identity),
    ("cast", _identity),
    ("cast", _cast_cast),
    ("reshape", _identity),
    ("reshape", _over("reshape")),
    ("permute", _permute_identity),
    ("permute", _permute_permute),
    ("expand", _identity),
    ("expand", _over("expand")),
    ("slice", _slice_whole),
    ("slice", _slice_slice),
    ("slice", _slice_split),
    ("where", _where_constant),
    ("where", _where_same),
    ("cat", _one_piece),
    ("scatter_add", _scatter_one),
    ("amax", _reduce_nothing),
    ("amin", _reduce_nothing),
    ("prod", _reduce_nothing),
)
_BY_OP: dict[str, list[Rule]] = {}
for _name, _rule in RULES:
    _BY_OP.setdefault(_name, []).append(_rule)


def _fold(site: Site) -> list[Value] | None:
    """The results of a small call on constants only, computed now by the eager kernel."""
    node = site.node
    if node.op.kind >= Kind.REDUCE or not (site.inputs and all(v.is_constant for v in site.inputs)):
        return None
    if any(v.numel > FOLD_LIMIT or v.dtype == "bfloat16" for v in node.outputs):
        return None
    call = Graph([], [Node(node.op, site.inputs, node.attrs, node.outputs)], node.outputs)
    return [array(t.numpy()) for t in evaluate(call, [])]


def _once(graph: Graph) -> tuple[Graph, bool]:
    """One sweep, and whether any rule matched."""
    makers: dict[Value, Node] = {}
    changed = False

    def rewrite(builder: Builder, node: Node, inputs: list[Value]) -> Sequence[Value]:
        nonlocal changed
        site = Site(node, inputs, builder, makers)
        folded = _fold(site)
        if folded is not None:
            changed = True
            return folded
        if len(node.outputs) == 1:
            for rule in _BY_OP.get(node.op.name, ()):
                value = rule(site)
                if value is not None:
                    changed = True
                    return [value]
        types = [(v.shape, v.dtype) for v in node.outputs]
        outputs = builder.node(node.op, inputs, node.attrs, types)
        makers.update(dict.fromkeys(outputs, builder.graph.nodes[-1]))
        return outputs

    return graph.rebuild(rewrite), changed


def simplify(graph: Graph) -> Graph:
    """`graph` with the rules applied to each call, operands first, until none matches.

    Every rule removes a call or brings it nearer to the inputs, so this ends."""
    changed = True
    while changed:
        graph, changed = _once(graph)
    return graph
