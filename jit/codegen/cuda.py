"""Prints compiled programs as CUDA C++: one persistent kernel that interprets a table.

The instruction table, the bodies and the schedule are those of the CPU runtime; only the number
of workers differs, because here a worker is a thread block.  The source is the runtime
``cuda_prelude.h`` (interpreter loop, grid barrier, matrix product), one device function per body,
and a switch over body numbers.  It includes no header, and compiles with NVRTC
(`jit.runtime.nvrtc`) and, behind a host shim, with a C++ compiler (`jit.codegen.shim`).

A body is spread over the threads of a block: neighbouring threads take neighbouring points of the
lane dimension, so that they access neighbouring memory.  In a Reduce a group of threads shares
each result; how many depends only on the extents, and so does the order of additions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eager.scalar import Expr, vocabulary
from jit.codegen import c
from jit.codegen.printer import Backend, Template, print_expressions
from jit.fusion.bodies import EXCHANGE, FIRST, GEMM, Access, Body, Sink, Slot, slots
from jit.fusion.program import Program
from jit.fusion.tile import compute_dtype

THREADS = 256
"""Threads per block, unless the source is compiled with another ``-DTHREADS``."""

PRELUDE = (Path(__file__).parent / "cuda_prelude.h").read_text()


def _constant(value: float, dtype: str) -> str:
    """A literal of exactly this value and type."""
    if dtype in ("int32", "int64"):
        number = int(value)
        suffix = "LL" if dtype == "int64" else ""
        if number == -(1 << (63 if suffix else 31)):  # the literal itself would not fit
            return f"(-{-number - 1}{suffix} - 1)"
        return f"(-{-number}{suffix})" if number < 0 else f"{number}{suffix}"
    if dtype == "float32" and not math.isfinite(value):
        return f"__int_as_float(0x{np.float32(value).view(np.uint32):08x})"
    if dtype == "float64" and not math.isfinite(value):
        return f"__longlong_as_double(0x{np.float64(value).view(np.uint64):016x}LL)"
    return c.constant(value, dtype)


def _without_builtins(template: Template) -> Template:
    return template.replace("__builtin_", "") if isinstance(template, str) else template


# C's spelling, but CUDA's math functions have their plain names, and fma is an instruction.
BACKEND = Backend(
    types=c.TYPES,
    templates={
        **{name: _without_builtins(t) for name, t in c.TEMPLATES.items()},
        "fma:float32": "fmaf({0}, {1}, {2})",
        "fma:float64": "fma({0}, {1}, {2})",
    },
    constant=_constant,
    statement="const {type} {name} = {value};",
)

# The helpers those templates call, for the device.
ARITHMETIC = c.PRELUDE.replace("inline ", "__device__ inline ").replace("__builtin_", "")

# Element type in memory, and how an element becomes a value and a value an element.
_MEMORY = {
    "float32": "float", "float64": "double", "float16": "half_bits", "bfloat16": "half_bits",
    "int8": "signed char", "int16": "short", "int32": "int32_t", "int64": "int64_t",
    "uint8": "unsigned char", "bool": "unsigned char",
}  # fmt: skip
_LOAD = {"float16": "from_float16({})", "bfloat16": "from_bfloat16({})", "bool": "({} != 0)"}
_STORE = {"float16": "to_float16({})", "bfloat16": "to_bfloat16({})"}


@dataclass(frozen=True, eq=False)
class CudaProgram:
    """A program printed for CUDA.

    The kernel is ``program(buffers, words, starts, workers, epochs, arrived)``: base addresses by
    buffer number, the instruction table of `program`, and the barrier's counter, a uint64 that is
    zero before the first launch and kept between launches.

    Attributes:
        program: what was printed; its tables go into memory as they are.
        source: CUDA C++ that includes nothing.
        blocks: grid size; all of them must be resident at once.  A smaller grid is right too.
        threads: block size.
    """

    program: Program
    source: str
    blocks: int
    threads: int


class _Printer:
    """Writes one body's function."""

    def __init__(self, body: Body, number: int) -> None:
        self.body = body
        self.slots = slots(body)
        self.lines: list[str] = []
        self.indent = "  "
        self.name = f"body_{number}"

    def add(self, *lines: str) -> None:
        self.lines += [self.indent + line for line in lines]

    def open(self, line: str) -> None:
        self.add(line)
        self.indent += "  "

    def close(self) -> None:
        self.indent = self.indent[:-2]
        self.add("}")

    def expressions(self, roots: Sequence[Expr], prefix: str) -> list[str]:
        """Prints statements for `roots`; returns the text of each."""
        printed = print_expressions(BACKEND, roots, prefix=prefix)
        self.add(*printed.hoisted, *printed.body)
        return printed.results

    def pointer(self, name: str, dtype: str | None, slot: Slot, const: str) -> None:
        """The address of an access at the origin of the iteration space."""
        if dtype is None:
            self.add(f"const int64_t {name}_at = w[{slot.offset}];")
            return
        kind = const + _MEMORY[dtype]
        base = f"static_cast<{kind}*>(buffers[w[{slot.buffer}]])"
        self.add(f"{kind}* const {name}_at = {base} + w[{slot.offset}];")

    def address(self, inner: int, rank: int, slot: Slot) -> str:
        """The distance from the origin at the point ``i0, i1, ...``."""
        parts = []
        for d in range(rank):
            if d != self.body.lane:
                parts.append(f"i{d} * w[{slot.strides + d}]")
            elif inner:
                parts.append(f"i{d}" if inner == 1 else f"i{d} * w[{slot.strides + d}]")
        return " + ".join(parts) or "0"

    def load(self, i: int, access: Access, rank: int, slot: Slot) -> None:
        """Declares x<i>."""
        address = self.address(access.inner, rank, slot)
        for j, index in enumerate(self.expressions(access.terms, f"x{i}_")):
            size, stride = slot.terms + 2 * j, slot.terms + 2 * j + 1
            address += f" + checked({index}, w[{size}], buffers, w[{slot.buffer}]) * w[{stride}]"
        if access.dtype is None:
            self.add(f"const int64_t x{i} = x{i}_at + {address};")
            return
        value = _LOAD.get(access.dtype, "{}").format(f"x{i}_at[{address}]")
        self.add(f"const {c.TYPES[compute_dtype(access.dtype)]} x{i} = {value};")

    def store(self, sinks: Sequence[Sink]) -> None:
        roots = [vocabulary.cast(s.value, compute_dtype(s.dtype)) for s in sinks]
        values = self.expressions(roots, "t")
        for i, (sink, slot) in enumerate(zip(sinks, self.slots.sinks, strict=True)):
            value = _STORE.get(sink.dtype, f"({_MEMORY[sink.dtype]}){{}}").format(values[i])
            self.add(f"y{i}_at[{self.address(sink.inner, self.body.kept, slot)}] = {value};")

    def used(self, d: int) -> bool:
        """Whether an address depends on the index of loop `d`."""
        body = self.body
        accesses: list[Access | Sink] = [*body.loads]
        if d < body.kept:
            accesses += [*body.tail, *body.sinks]
        return any(a.inner or d != body.lane for a in accesses)

    def indices(self, point: str, dims: range) -> None:
        """Declares the loop indices of row-major point number `point`."""
        rest = point
        for d in reversed(dims):
            if self.used(d):
                outermost = d == dims[0]
                self.add(f"const int64_t i{d} = {rest if outermost else f'{rest} % n{d}'};")
            if not any(self.used(outer) for outer in dims if outer < d):
                return
            self.add(f"const unsigned rest_{d} = {rest} / n{d};")
            rest = f"rest_{d}"

    def print(self) -> str:
        body = self.body
        self.add(*(f"const unsigned n{d} = unsigned(w[{d}]);" for d in range(body.rank)))
        accesses = zip(
            [*body.loads, *body.tail], [*self.slots.loads, *self.slots.tail], strict=True
        )
        for i, (access, slot) in enumerate(accesses):
            self.pointer(f"x{i}", access.dtype, slot, "const ")
        for i, (sink, slot) in enumerate(zip(body.sinks, self.slots.sinks, strict=True)):
            self.pointer(f"y{i}", sink.dtype, slot, "")
        if body.is_reduce:
            self.print_reduce()
        else:
            self.print_map()
        head = f"__device__ __noinline__ void {self.name}(void* const* buffers, const int64_t* w)"
        return "\n".join([head + " {", *self.lines, "}"])

    def print_map(self) -> None:
        body = self.body
        points = " * ".join(f"n{d}" for d in range(body.rank))
        self.open(f"for (unsigned e = threadIdx.x; e < {points}; e += THREADS) {{")
        self.indices("e", range(body.rank))
        for i, (access, slot) in enumerate(zip(body.loads, self.slots.loads, strict=True)):
            self.load(i, access, body.rank, slot)
        self.store(body.sinks)
        self.close()

    def print_reduce(self) -> None:
        body = self.body
        types = [c.TYPES[f.value.dtype] for f in body.folds]
        self.add(
            f"const unsigned kept = {' * '.join(f'n{d}' for d in range(body.kept))};",
            f"const unsigned folded = {' * '.join(f'n{d}' for d in range(body.kept, body.rank))};",
            f"const Group group(kept, folded, {'true' if body.lane >= body.kept else 'false'});",
        )
        for i, fold in enumerate(body.folds):
            self.open(f"const auto combine{i} = []({types[i]} a, {types[i]} b) -> {types[i]} {{")
            (value,) = self.expressions([fold.combine], "t")
            self.add(f"return {value};")
            self.indent = self.indent[:-2]
            self.add("};")
        self.open("for (unsigned first = 0; first < kept; first += group.results) {")
        self.add("const unsigned e = first + group.result;")
        self.indices("e", range(body.kept))
        for i, fold in enumerate(body.folds):
            identity = _constant(fold.identity, fold.value.dtype)
            self.add(f"{types[i]} r{i} = {identity};")
        self.open(
            "for (unsigned f = e < kept ? group.part : folded; f < folded; f += group.size) {"
        )
        self.indices("f", range(body.kept, body.rank))
        for i, (access, slot) in enumerate(zip(body.loads, self.slots.loads, strict=True)):
            self.load(i, access, body.rank, slot)
        values = self.expressions([f.value for f in body.folds], "v")
        self.add(*(f"r{i} = combine{i}(r{i}, {v});" for i, v in enumerate(values)))
        self.close()
        self.add(*(f"r{i} = group.fold(r{i}, combine{i});" for i in range(len(body.folds))))
        self.add("if (group.part != 0 || e >= kept) continue;")
        for i, (access, slot) in enumerate(zip(body.tail, self.slots.tail, strict=True)):
            self.load(len(body.loads) + i, access, body.kept, slot)
        self.store(body.sinks)
        self.close()


def print_bodies(bodies: Sequence[Body]) -> str:
    """The source of the kernel ``program`` for `bodies`, which are numbered from `FIRST`."""
    numbered = list(enumerate(bodies, start=FIRST))
    cases = [f"    case {GEMM}: gemm_tile(buffers, w); break;"]
    cases += [f"    case {n}: body_{n}(buffers, w); break;" for n, _ in numbered]
    return "\n\n".join(
        [
            PRELUDE.rstrip(),
            ARITHMETIC.rstrip(),
            *(_Printer(body, n).print() for n, body in numbered),
            "__device__ void execute(int64_t body, void* const* buffers, const int64_t* w) {\n"
            "  switch (body) {\n" + "\n".join(cases) + "\n  }\n}\n",
        ]
    )


def print_program(program: Program) -> CudaProgram:
    """The CUDA form of `program`, which was scheduled for one worker per thread block.

    Raises:
        NotImplementedError: the program holds a collective; or one task has 2^31 points or more,
            too many for the 32-bit counters of a block's loops (schedule for more workers).
    """
    words, at = program.words, 0
    while at < len(words):
        length, number = int(words[at]), int(words[at + 1])
        if number == EXCHANGE:
            raise NotImplementedError("cuda: collectives inside of a program are for the CPU only")
        if number != GEMM:
            rank = program.bodies[number - FIRST].rank
            points = math.prod(words[at + 2 : at + 2 + rank].tolist())
            if points >= 1 << 31:
                raise NotImplementedError(f"cuda: a task of {points} points; the limit is 2^31 - 1")
        at += length
    return CudaProgram(program, print_bodies(program.bodies), program.workers, THREADS)
