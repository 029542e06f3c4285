"""Prints DAGs of scalar expressions as statements, from a backend's table of templates.

A backend is data: type names and, per vocabulary function, a template such as
``"{0} + {1}"``.  Functions it has no template for are expanded through `eager.scalar_math` until
only functions with templates are left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eager import scalar_math
from eager.scalar import Expr, vocabulary

# A template: a format string over the printed operands ({0}, {1}, ... and {type}, the result's
# type), or a function of (expression, printed operands) for what a format string cannot say.
Template = str | Callable[[Expr, Sequence[str]], str]


@dataclass(frozen=True)
class Backend:
    """How one target language spells scalar expressions.

    Attributes:
        types: dtype -> type name.
        templates: what each function prints as.  Looked up by ``"fn:dtype"``, with the dtype of
            the first operand (for ``where`` the second, for ``cast`` ``"cast:from:to"``), then by
            ``"fn"``.  A function found under neither is expanded by `eager.scalar_math`.
        constant: prints ``(value, dtype)`` exactly.
        statement: declares a temporary: a format string over {type}, {name} and {value}.
    """

    types: Mapping[str, str]
    templates: Mapping[str, Template]
    constant: Callable[[float, str], str]
    statement: str

    def template(self, e: Expr) -> Template | None:
        """The template for `e`'s function and operand dtype; None if it must be expanded."""
        if e.fn == "cast":
            key = f"cast:{e.args[0].dtype}:{e.dtype}"
        else:
            key = f"{e.fn}:{e.args[1 if e.fn == 'where' else 0].dtype}"
        return self.templates.get(key, self.templates.get(e.fn))

    def expand(self, roots: Iterable[Expr]) -> list[Expr]:
        """The same values in terms of functions that have templates.

        Raises:
            NotImplementedError: a function has neither a template nor an expansion.
        """
        done: dict[Expr, Expr] = {}
        for e in postorder(roots):
            args = tuple(done[a] for a in e.args)
            new = e if args == e.args else Expr(e.fn, args, e.dtype, e.value)
            if args and self.template(new) is None:
                definition = scalar_math.EXPANSIONS.get((new.fn, args[0].dtype))
                if definition is None:
                    raise NotImplementedError(
                        f"{new.fn} of {args[0].dtype}: no template, and eager.scalar_math "
                        "does not define it"
                    )
                (new,) = self.expand([definition(vocabulary, *args)])
            done[e] = new
        return [done[e] for e in roots]


class Printed(NamedTuple):
    """Statements in order, and the expression text of each root."""

    hoisted: list[str]  # depend only on `invariant` arguments and constants
    body: list[str]
    results: list[str]


def postorder(roots: Iterable[Expr]) -> list[Expr]:
    """Every node once, operands before their users.  Deep expressions need no recursion."""
    seen: set[Expr] = set()
    order: list[Expr] = []
    for root in roots:
        stack = [(root, False)]
        while stack:
            e, ready = stack.pop()
            if ready:
                order.append(e)
            elif e not in seen:
                seen.add(e)
                stack.append((e, True))
                stack.extend((a, False) for a in reversed(e.args))
    return order


def free_arguments(roots: Iterable[Expr]) -> list[Expr]:
    """The "arg" nodes the expressions read, in order of first use."""
    return [e for e in postorder(roots) if e.fn == "arg"]


def print_expressions(
    backend: Backend,
    roots: Sequence[Expr],
    *,
    prefix: str = "t",
    names: Mapping[Expr, str] | None = None,
    invariant: Collection[Expr] = (),
) -> Printed:
    """Prints `roots` as single-assignment statements; equal subexpressions are printed once.

    Args:
        backend: the target language.
        roots: the values wanted.
        prefix: temporaries are called ``<prefix>0``, ``<prefix>1``, ...
        names: text for "arg" nodes; without an entry, the argument's own name.
        invariant: "arg" nodes that do not change inside the loop.  What depends on nothing else
            lands in ``hoisted``.
    """
    roots = backend.expand(roots)
    text: dict[Expr, str] = {}
    fixed: set[Expr] = set(invariant)
    out = Printed([], [], [])
    count = 0
    for e in postorder(roots):
        if e.fn == "arg":
            text[e] = (names or {}).get(e, str(e.value))
        elif e.fn == "const":
            text[e] = backend.constant(e.value, e.dtype)
            fixed.add(e)
        else:
            template = backend.template(e)
            operands = [text[a] for a in e.args]
            if callable(template):
                value = template(e, operands)
            else:
                assert template is not None
                value = template.format(*operands, type=backend.types[e.dtype])
            text[e] = f"{prefix}{count}"
            count += 1
            line = backend.statement.format(type=backend.types[e.dtype], name=text[e], value=value)
            if all(a in fixed for a in e.args):
                fixed.add(e)
                out.hoisted.append(line)
            else:
                out.body.append(line)
    out.results.extend(text[e] for e in roots)
    return out
