"""Prints bodies as Python source that Numba compiles.

A printed body is a function ``(buffers, ins)`` with one loop per dimension.  The lane loop steps
by `LANES` points; in it each statement works on vectors (`jit.codegen.vectors`).  What does not
change along the lanes is computed before that loop.  This module does not import Numba: printing
is enough to find a body in the code cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from eager.scalar import FUNCTIONS, Expr, vocabulary
from jit.codegen.printer import Backend, free_arguments, print_expressions
from jit.fusion.bodies import Access, Body, Sink, Slot, slots
from jit.fusion.tile import FLAGS, ITEM_SIZE, compute_dtype, result

UNARY = frozenset(
    ("neg", "abs", "not_", "bits", "sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "sin", "cos",
     "tanh", "erf", "floor", "ceil", "round", "trunc", "isnan")
)  # fmt: skip
"""The functions of the vocabulary with one argument; `where` and `fma` have three."""


def _constant(value: float, dtype: str) -> str:
    if dtype in ("float32", "float64") and not math.isfinite(value):
        text = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        return f"{dtype}({text})"
    return f"{dtype}({int(value) if dtype == 'bool' else value!r})"


def _call(fn: str) -> str:
    """The template of a function that is called by its own name."""
    if fn in ("where", "fma"):
        return f"{fn}({{0}}, {{1}}, {{2}})"
    return f"{fn}({{0}})" if fn in UNARY else f"{fn}({{0}}, {{1}})"


_TYPES = ("float32", "float64", "int32", "int64", "bool")
NUMBA = Backend(
    types={d: d for d in _TYPES},
    templates={fn: _call(fn) for fn in FUNCTIONS} | {"cast": "to_{type}({0})"},
    constant=_constant,
    statement="{name} = {value}",
)


class _Writer:
    """Lines with an indentation."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 0

    def __call__(self, *lines: str) -> None:
        self.lines += ["    " * self.depth + line for line in lines]

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self(head)
        self.depth += 1
        yield
        self.depth -= 1


class _Printer:
    def __init__(self, body: Body, lanes: int, split: bool) -> None:
        self.body, self.lanes, self.split = body, lanes, split
        self.slots = slots(body)
        self.out = _Writer()
        self.count = 0
        reduced = (body.lane >= body.kept) if body.is_reduce else False
        self.across = reduced  # lanes run along a reduced dimension and are folded at the end
        n = len(body.loads)
        # (the name expressions use, access, slot)
        self.loads = [
            (f"x{i}", a, s)
            for i, (a, s) in enumerate(zip(body.loads, self.slots.loads, strict=True))
        ]
        self.tail = [
            (f"x{n + i}", a, s)
            for i, (a, s) in enumerate(zip(body.tail, self.slots.tail, strict=True))
        ]
        self.sinks = [
            (f"y{i}", a, s)
            for i, (a, s) in enumerate(zip(body.sinks, self.slots.sinks, strict=True))
        ]

    # --- addresses ---

    def prologue(self) -> None:
        body = self.body
        for d in range(body.rank):
            self.out(f"n{d} = word(ins, {d})")
        for name, access, slot in [*self.loads, *self.tail]:
            rank = body.rank if (name, access, slot) in self.loads else body.kept
            self.operand(name, access.dtype, slot, rank)
            for j in range(len(access.terms)):
                self.out(f"{name}_size{j} = word(ins, {slot.terms + 2 * j})")
                self.out(f"{name}_step{j} = word(ins, {slot.terms + 2 * j + 1})")
                self.out(f"{name}_code = word(ins, {slot.buffer}) + 1")
        for name, sink, slot in self.sinks:
            self.operand(name, sink.dtype, slot, body.kept)
        if any(a.terms for _, a, _ in [*self.loads, *self.tail]):
            self.out(f"flags = table(buffers, {FLAGS})")
        self.out(f"all_lanes = first_lanes({self.lanes})")

    def operand(self, name: str, dtype: str | None, slot: Slot, rank: int) -> None:
        if dtype is None:
            self.out(f"{name}_base = word(ins, {slot.offset})")
        else:
            size = ITEM_SIZE[dtype]
            self.out(f"{name}_base = pointer(buffers, ins, {slot.buffer}, {size})")
        for d in range(rank):
            self.out(f"{name}_s{d} = word(ins, {slot.strides + d})")

    def place(self, name: str, loops: Sequence[int], inner: int) -> str:
        """The element an access begins at in the current iteration of `loops`; `inner` is its
        stride class along the lanes."""
        parts = []
        for d in loops:
            if d != self.body.lane:
                parts.append(f"i{d} * {name}_s{d}")
            elif inner == 1:
                parts.append(f"i{d}")
            elif inner == 2:
                parts.append(f"i{d} * {name}_s{d}")
        return " + ".join(parts) or "0"

    # --- loads and stores ---

    def varying(self, e: Expr, names: set[Expr]) -> bool:
        return any(a in names for a in free_arguments([e]))

    def load(self, name: str, access: Access, loops: Sequence[int], live: str) -> None:
        """Assigns the vector ``name``; `live` is the mask's name, "" for full vectors."""
        dtype, lane = access.dtype, self.body.lane
        inner = access.inner if lane in loops else 0
        at = self.place(name, loops, inner)
        if dtype is None:
            if inner:
                self.out(f"{name} = lane_numbers({name}_base + {at}, {name}_s{lane})")
            else:
                self.out(f"{name} = splat_int({name}_base + {at})")
            return
        if access.terms:
            self.indexed(name, access, inner, at, live)
        elif inner == 0:
            self.out(f"{name} = load_all_{dtype}({name}_base, {at})")
        elif inner == 2:
            step = f"{name}_s{lane}"
            mask = live or "all_lanes"
            self.out(f"{name} = load_strided_{dtype}({name}_base, {at}, {step}, {mask})")
        elif live:
            self.out(f"{name} = load_{dtype}({name}_base, {at}, {live})")
        else:
            self.out(f"{name} = load_full_{dtype}({name}_base, {at})")

    def indexed(self, name: str, access: Access, inner: int, at: str, live: str) -> None:
        """A load with computed coordinates.  When the indices do not vary along the lanes, the
        row they point to is read like any other."""
        dtype, lane = access.dtype, self.body.lane
        uniform = all(not self.varying(e, self.moving) for e in access.terms)
        mask = live or "all_lanes"
        total = []
        for j, e in enumerate(access.terms):
            index = self.expressions([e])[0]
            safe = f"bounded({index}, {name}_size{j}, {mask}, flags, {name}_code)"
            self.out(f"{name}_i{j} = {safe}")
            if uniform:
                total.append(f"first({name}_i{j}) * {name}_step{j}")
            else:
                total.append(f"mul({name}_i{j}, splat_int({name}_step{j}))")
        if uniform:
            self.out(f"{name}_at = {' + '.join([at, *total])}")
            if inner == 0:
                self.out(f"{name} = load_all_{dtype}({name}_base, {name}_at)")
            elif inner == 1 and live:
                self.out(f"{name} = load_{dtype}({name}_base, {name}_at, {live})")
            elif inner == 1:
                self.out(f"{name} = load_full_{dtype}({name}_base, {name}_at)")
            else:
                rest = f"{name}_at, {name}_s{lane}, {mask}"
                self.out(f"{name} = load_strided_{dtype}({name}_base, {rest})")
            return
        step = {0: "0", 1: "1"}.get(inner, f"{name}_s{lane}")
        self.out(f"{name}_at = lane_numbers({at}, {step})")
        for text in total:
            self.out(f"{name}_at = add({name}_at, {text})")
        self.out(f"{name} = load_indexed_{dtype}({name}_base, {name}_at, {mask})")

    def store(self, name: str, sink: Sink, value: str, loops: Sequence[int], live: str) -> None:
        dtype, lane = sink.dtype, self.body.lane
        inner = sink.inner if lane in loops else 0
        at = self.place(name, loops, inner)
        if lane not in loops or inner == 0:
            self.out(f"store_first_{dtype}({name}_base, {at}, {value})")
        elif inner == 2:
            rest = f"{at}, {name}_s{lane}, {value}, {live or 'all_lanes'}"
            self.out(f"store_strided_{dtype}({name}_base, {rest})")
        elif live:
            self.out(f"store_{dtype}({name}_base, {at}, {value}, {live})")
        else:
            self.out(f"store_full_{dtype}({name}_base, {at}, {value})")

    # --- expressions ---

    def expressions(self, roots: Sequence[Expr]) -> list[str]:
        """Prints `roots` here; gives their texts.  Names stay unique in the function."""
        printed = print_expressions(NUMBA, roots, prefix=f"t{self.count}_")
        self.count += 1
        self.out(*printed.hoisted, *printed.body)
        return printed.results

    @property
    def moving(self) -> set[Expr]:
        """Variables that vary along the lanes."""
        found: set[Expr] = set()
        for name, access, _ in [*self.loads, *self.tail]:
            dtype = "int64" if access.dtype is None else compute_dtype(access.dtype)
            if access.inner or any(self.varying(e, found) for e in access.terms):
                found.add(vocabulary.arg(name, dtype))
        return found

    def is_moving(self, name: str, access: Access) -> bool:
        dtype = "int64" if access.dtype is None else compute_dtype(access.dtype)
        return vocabulary.arg(name, dtype) in self.moving

    # --- loops ---

    @contextmanager
    def loops(self, dims: Sequence[int]) -> Iterator[None]:
        depth = self.out.depth
        for d in dims:
            self.out(f"for i{d} in range(n{d}):")
            self.out.depth += 1
        yield
        self.out.depth = depth

    def lane_loops(self) -> Iterator[str]:
        """The loop along the lanes; the caller prints its inside for each mask name given."""
        lane, depth = self.body.lane, self.out.depth
        start = "0"
        if self.split:
            self.out(f"full = n{lane} - n{lane} % {self.lanes}")
            self.out(f"for i{lane} in range(0, full, {self.lanes}):")
            self.out.depth = depth + 1
            yield ""
            self.out.depth = depth
            start = "full"
        self.out(f"for i{lane} in range({start}, n{lane}, {self.lanes}):")
        self.out.depth = depth + 1
        self.out(f"live = first_lanes(n{lane} - i{lane})")
        yield "live"
        self.out.depth = depth

    def map(self) -> None:
        body = self.body
        loops = list(range(body.rank))
        with self.loops(loops[:-1]):
            fixed = []
            for name, access, _ in self.loads:
                if not self.is_moving(name, access):
                    self.load(name, access, loops[:-1], "")
                    dtype = "int64" if access.dtype is None else compute_dtype(access.dtype)
                    fixed.append(vocabulary.arg(name, dtype))
            printed = print_expressions(
                NUMBA, [s.value for s in body.sinks], prefix="t", invariant=fixed
            )
            self.out(*printed.hoisted)
            for live in self.lane_loops():
                for name, access, _ in self.loads:
                    if self.is_moving(name, access):
                        self.load(name, access, loops, live)
                self.out(*printed.body)
                for (name, sink, _), value in zip(self.sinks, printed.results, strict=True):
                    self.store(name, sink, value, loops, live)

    def fold(self, values: Sequence[str], live: str) -> None:
        """Folds values into the accumulators, in the lanes of `live` if given."""
        for i, (f, value) in enumerate(zip(self.body.folds, values, strict=True)):
            combined = self.combine(f.combine, f.value.dtype, f"r{i}", value)
            self.out(f"r{i} = where({live}, {combined}, r{i})" if live else f"r{i} = {combined}")

    def combine(self, e: Expr, dtype: str, a: str, b: str) -> str:
        names = {vocabulary.arg("a", dtype): a, vocabulary.arg("b", dtype): b}
        printed = print_expressions(NUMBA, [e], prefix=f"t{self.count}_", names=names)
        self.count += 1
        self.out(*printed.hoisted, *printed.body)
        return printed.results[0]

    def start(self) -> None:
        for i, f in enumerate(self.body.folds):
            self.out(f"r{i} = {_constant(f.identity, f.value.dtype)}")

    def finish(self, loops: Sequence[int], live: str) -> None:
        """The epilogue, at a kept point or (lanes along the kept points) a vector of them."""
        for name, access, _ in self.tail:
            self.load(name, access, loops, live)
        results = [result(i, f.value.dtype) for i, f in enumerate(self.body.folds)]
        names = {r: f"r{i}" for i, r in enumerate(results)}
        printed = print_expressions(
            NUMBA, [s.value for s in self.body.sinks], prefix=f"t{self.count}_", names=names
        )
        self.count += 1
        self.out(*printed.hoisted, *printed.body)
        for (name, sink, _), value in zip(self.sinks, printed.results, strict=True):
            self.store(name, sink, value, loops, live)

    def reduce_across(self) -> None:
        """Lanes along the last reduced dimension."""
        body = self.body
        kept, reduced = list(range(body.kept)), list(range(body.kept, body.rank))
        values = [f.value for f in body.folds]
        with self.loops(kept):
            self.start()
            with self.loops(reduced[:-1]):
                outside = kept + reduced[:-1]
                for name, access, _ in self.loads:
                    if not self.is_moving(name, access):
                        self.load(name, access, outside, "")
                for live in self.lane_loops():
                    for name, access, _ in self.loads:
                        if self.is_moving(name, access):
                            self.load(name, access, kept + reduced, live)
                    self.fold(self.expressions(values), live)
            step = self.lanes // 2
            while step:
                rotated = []
                for i in range(len(body.folds)):
                    self.out(f"r{i}_{step} = rotate(r{i}, {step})")
                    rotated.append(f"r{i}_{step}")
                self.fold(rotated, "")
                step //= 2
            self.finish(kept, "")

    def reduce_along(self) -> None:
        """Lanes along the last kept dimension."""
        body = self.body
        kept, reduced = list(range(body.kept)), list(range(body.kept, body.rank))
        values = [f.value for f in body.folds]
        with self.loops(kept[:-1]):
            for live in self.lane_loops():
                self.start()
                with self.loops(reduced):
                    for name, access, _ in self.loads:
                        self.load(name, access, kept + reduced, live)
                    self.fold(self.expressions(values), "")
                self.finish(kept, live)

    def source(self, name: str) -> str:
        with self.out.block(f"def {name}(buffers, ins):"):
            self.prologue()
            if not self.body.is_reduce:
                self.map()
            elif self.across:
                self.reduce_across()
            else:
                self.reduce_along()
        return "\n".join(self.out.lines) + "\n"


def print_body(body: Body, lanes: int, *, split: bool, name: str = "tile") -> str:
    """The source of `body`.

    Args:
        body: what to print.
        lanes: points per vector.
        split: whether to print the lane loop twice: for full vectors without masks, then for the
            rest.
        name: the function's name.
    """
    return _Printer(body, lanes, split).source(name)
