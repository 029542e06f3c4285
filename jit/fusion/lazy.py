"""Values that are not computed yet: expressions whose variables are places in buffers.

A `Lazy` describes a tensor as one expression over its own index space.  View ops act on it by
acting on the layouts of its loads, elementwise ops by composing expressions; so chains of both
collapse into one expression without anything being computed or moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from eager.layout import Layout
from eager.scalar import Expr, vocabulary
from jit.codegen.printer import free_arguments, postorder
from jit.fusion.scalars import cost
from jit.fusion.tile import Load, Term, variable


class Lazy(NamedTuple):
    """A tensor of `shape`; `expr`'s variables are names of `Symbols`."""

    shape: tuple[int, ...]
    expr: Expr


def substitute(e: Expr, values: dict[Expr, Expr]) -> Expr:
    """`e` with some of its variables replaced."""
    done = dict(values)
    for node in postorder([e]):
        if node in done:
            continue
        args = tuple(done[a] for a in node.args)
        done[node] = node if args == node.args else Expr(node.fn, args, node.dtype, node.value)
    return done[e]


def size(*roots: Expr) -> int:
    """What evaluating `roots` together costs, in additions."""
    return sum(cost(node.fn) for node in postorder(roots) if node.args)


class Symbols:
    """The variables of lazy values: each names one `Load`, and equal loads share a name."""

    def __init__(self) -> None:
        self._names: dict[tuple[Load, str], Expr] = {}
        self._loads: dict[Expr, Load] = {}

    def of(self, load: Load, dtype: str) -> Expr:
        """The variable that stands for `load`, of compute dtype `dtype`."""
        found = self._names.get((load, dtype))
        if found is None:
            found = vocabulary.arg(f"v{len(self._names)}", dtype)
            self._names[load, dtype] = found
            self._loads[found] = load
        return found

    def load(self, variable: Expr) -> Load:
        """What a variable stands for."""
        return self._loads[variable]

    def place(self, e: Expr, move: Callable[[Layout], Layout | None]) -> Expr | None:
        """`e` with `move` applied to the layout of every load, those in computed indices too;
        None if `move` gives None for one."""
        values: dict[Expr, Expr] = {}
        for v in free_arguments([e]):
            load = self.load(v)
            layout = move(load.layout)
            if layout is None:
                return None
            terms = []
            for term in load.terms:
                index = self.place(term.place, move)
                if index is None:
                    return None
                terms.append(Term(index, term.size, term.stride))
            values[v] = self.of(Load(load.buffer, layout, tuple(terms)), v.dtype)
        return substitute(e, values)

    def stage_loads(self, roots: Sequence[Expr], taken: int = 0) -> tuple[list[Load], list[Expr]]:
        """The loads that `roots` need, in an order in which computed indices use earlier ones, and
        the roots in terms of their numbers, which begin at `taken`."""
        loads: list[Load] = []
        values: dict[Expr, Expr] = {}

        def visit(e: Expr) -> Expr:
            for v in free_arguments([e]):
                if v in values:
                    continue
                load = self.load(v)
                terms = tuple(Term(visit(t.place), t.size, t.stride) for t in load.terms)
                values[v] = variable(taken + len(loads), v.dtype)
                loads.append(Load(load.buffer, load.layout, terms))
            return substitute(e, values)

        return loads, [visit(e) for e in roots]
