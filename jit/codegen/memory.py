"""Memory for Numba bodies: instruction words, masked and indexed loads and stores, lane tools.

Loads give the compute dtype of the memory's dtype: float16 and bfloat16 widen to float32, and
integers to int64; stores convert back.  `namespace` gathers all that generated source may name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from jit.codegen.vectors import I8, I32, I64, LLVM, Vector, call, constant, scalar_names, splat
from jit.fusion.tile import ITEM_SIZE, compute_dtype

I16 = ir.IntType(16)
# How elements lie in memory.
MEMORY = {
    "float32": ir.FloatType(), "float64": ir.DoubleType(), "float16": ir.HalfType(),
    "bfloat16": I16, "int8": I8, "int16": I16, "int32": I32, "int64": I64, "uint8": I8, "bool": I8,
}  # fmt: skip
SUFFIX = {
    "float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "i16", "int8": "i8",
    "int16": "i16", "int32": "i32", "int64": "i64", "uint8": "i8", "bool": "i8",
}  # fmt: skip


@intrinsic
def word(_context: Any, _ins: Any, _i: Any) -> Any:
    """Word `i` of the instruction."""

    def codegen(_c: Any, b: Any, _sig: Any, args: Sequence[Any]) -> Any:
        return b.load(b.gep(b.bitcast(args[0], I64.as_pointer()), [args[1]]))

    return types.int64(types.voidptr, types.int64), codegen


@intrinsic
def table(_context: Any, _buffers: Any, _i: Any) -> Any:
    """The base address of buffer `i`."""

    def codegen(_c: Any, b: Any, _sig: Any, args: Sequence[Any]) -> Any:
        return b.load(b.gep(b.bitcast(args[0], I8.as_pointer().as_pointer()), [args[1]]))

    return types.voidptr(types.voidptr, types.int64), codegen


@intrinsic
def pointer(_context: Any, _buffers: Any, _ins: Any, _i: Any, _size: Any) -> Any:
    """The address of an access: buffer in word `i`, offset in the next, elements of `size`
    bytes."""

    def codegen(_c: Any, b: Any, _sig: Any, args: Sequence[Any]) -> Any:
        table, ins, i, size = args
        words = b.bitcast(ins, I64.as_pointer())
        number = b.load(b.gep(words, [i]))
        offset = b.load(b.gep(words, [b.add(i, I64(1))]))
        base = b.load(b.gep(b.bitcast(table, I8.as_pointer().as_pointer()), [number]))
        return b.gep(base, [b.mul(offset, size)])

    return types.voidptr(types.voidptr, types.voidptr, types.int64, types.int64), codegen


def _widen(b: Any, dtype: str, x: Any) -> Any:
    """Memory elements (a vector) to the compute dtype."""
    n = x.type.count
    if dtype == "float16":
        return b.fpext(x, ir.VectorType(LLVM["float32"], n))
    if dtype == "bfloat16":
        wide = b.zext(x, ir.VectorType(I32, n))
        sixteen = ir.Constant(wide.type, [16] * n)
        return b.bitcast(b.shl(wide, sixteen), ir.VectorType(LLVM["float32"], n))
    if dtype == "bool":
        return b.icmp_unsigned("!=", x, ir.Constant(x.type, None))
    if dtype == "uint8":
        return b.zext(x, ir.VectorType(I64, n))
    if dtype in ("int8", "int16", "int32"):
        return b.sext(x, ir.VectorType(I64, n))
    return x


def _narrow(b: Any, dtype: str, x: Any) -> Any:
    """A vector of the compute dtype to memory elements."""
    n = x.type.count
    kind = ir.VectorType(MEMORY[dtype], n)
    if dtype == "float16":
        return b.fptrunc(x, kind)
    if dtype == "bfloat16":
        # Round to nearest even on the bits; a NaN stays one by setting a bit of its mantissa.
        wide = ir.VectorType(I32, n)
        bits = b.bitcast(x, wide)
        sixteen = ir.Constant(wide, [16] * n)
        odd = b.and_(b.lshr(bits, sixteen), ir.Constant(wide, [1] * n))
        rounded = b.add(bits, b.add(odd, ir.Constant(wide, [0x7FFF] * n)))
        quiet = b.or_(bits, ir.Constant(wide, [0x400000] * n))
        chosen = b.select(b.fcmp_unordered("uno", x, x), quiet, rounded)
        return b.trunc(b.lshr(chosen, sixteen), kind)
    if dtype == "bool":
        return b.zext(x, kind)
    return b.trunc(x, kind) if dtype in ("int8", "int16", "int32", "uint8") else x


def _element(b: Any, base: Any, index: Any, dtype: str) -> Any:
    return b.gep(b.bitcast(base, MEMORY[dtype].as_pointer()), [index])


def _addresses(b: Any, base: Any, indices: Any, dtype: str, lanes: int) -> Any:
    bases = splat(b, b.ptrtoint(base, I64), lanes)
    size = constant("int64", ITEM_SIZE[dtype], lanes)
    kind = ir.VectorType(MEMORY[dtype].as_pointer(), lanes)
    return b.inttoptr(b.add(bases, b.mul(indices, size)), kind)


def _memory_functions(dtype: str, lanes: int) -> dict[str, Any]:
    """The accesses to elements of `dtype`, named ``load_float32`` and so on."""
    element, suffix = MEMORY[dtype], SUFFIX[dtype]
    kind = ir.VectorType(element, lanes)
    value, mask = Vector(compute_dtype(dtype), lanes), Vector("bool", lanes)
    indices = Vector("int64", lanes)
    align = I32(ITEM_SIZE[dtype])
    p, i = types.voidptr, types.int64
    size = ITEM_SIZE[dtype]

    def gathered(b: Any, base: Any, at: Any, live: Any) -> Any:
        args = [_addresses(b, base, at, dtype, lanes), align, live, ir.Constant(kind, None)]
        x = call(b, f"llvm.masked.gather.v{lanes}{suffix}.v{lanes}p0", kind, args)
        return _widen(b, dtype, x)

    def scattered(b: Any, base: Any, at: Any, x: Any, live: Any) -> None:
        args = [_narrow(b, dtype, x), _addresses(b, base, at, dtype, lanes), align, live]
        name = f"llvm.masked.scatter.v{lanes}{suffix}.v{lanes}p0"
        call(b, name, ir.VoidType(), args)

    def strided(b: Any, at: Any, stride: Any) -> Any:
        return b.add(splat(b, at, lanes), b.mul(splat(b, stride, lanes), iota(lanes)))

    def load(b: Any, base: Any, at: Any, live: Any) -> Any:
        place = b.bitcast(_element(b, base, at, dtype), kind.as_pointer())
        args = [place, align, live, ir.Constant(kind, None)]
        return _widen(b, dtype, call(b, f"llvm.masked.load.v{lanes}{suffix}.p0", kind, args))

    def load_full(b: Any, base: Any, at: Any) -> Any:
        place = b.bitcast(_element(b, base, at, dtype), kind.as_pointer())
        return _widen(b, dtype, b.load(place, align=size))

    def load_all(b: Any, base: Any, at: Any) -> Any:
        return _widen(b, dtype, splat(b, b.load(_element(b, base, at, dtype)), lanes))

    def store(b: Any, base: Any, at: Any, x: Any, live: Any) -> None:
        place = b.bitcast(_element(b, base, at, dtype), kind.as_pointer())
        args = [_narrow(b, dtype, x), place, align, live]
        call(b, f"llvm.masked.store.v{lanes}{suffix}.p0", ir.VoidType(), args)

    def store_full(b: Any, base: Any, at: Any, x: Any) -> None:
        place = b.bitcast(_element(b, base, at, dtype), kind.as_pointer())
        b.store(_narrow(b, dtype, x), place, align=size)

    def store_first(b: Any, base: Any, at: Any, x: Any) -> None:
        first = b.extract_element(_narrow(b, dtype, x), I32(0))
        b.store(first, _element(b, base, at, dtype))

    def load_strided(b: Any, base: Any, at: Any, stride: Any, live: Any) -> Any:
        return gathered(b, base, strided(b, at, stride), live)

    def store_strided(b: Any, base: Any, at: Any, stride: Any, x: Any, live: Any) -> None:
        scattered(b, base, strided(b, at, stride), x, live)

    functions: list[tuple[str, Callable[..., Any], Any]] = [
        ("load", load, value(p, i, mask)),
        ("load_full", load_full, value(p, i)),
        ("load_all", load_all, value(p, i)),
        ("load_strided", load_strided, value(p, i, i, mask)),
        ("load_indexed", gathered, value(p, indices, mask)),
        ("store", store, types.void(p, i, value, mask)),
        ("store_full", store_full, types.void(p, i, value)),
        ("store_first", store_first, types.void(p, i, value)),
        ("store_strided", store_strided, types.void(p, i, i, value, mask)),
    ]
    return {f"{name}_{dtype}": _memory_intrinsic(fn, sig) for name, fn, sig in functions}


def _memory_intrinsic(fn: Callable[..., Any], signature: Any) -> Any:
    def codegen(context: Any, b: Any, _sig: Any, args: Sequence[Any]) -> Any:
        found = fn(b, *args)
        return context.get_dummy_value() if found is None else found

    match len(signature.args):
        case 2:
            return intrinsic(lambda _context, _p, _i: (signature, codegen))
        case 3:
            return intrinsic(lambda _context, _p, _i, _x: (signature, codegen))
        case 4:
            return intrinsic(lambda _context, _p, _i, _s, _x: (signature, codegen))
        case _:
            return intrinsic(lambda _context, _p, _i, _s, _x, _m: (signature, codegen))


def iota(lanes: int) -> Any:
    """The constant 0, 1, 2, ... as int64."""
    return ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))


def _lane_functions(lanes: int) -> dict[str, Any]:
    """Masks, lane numbers, and what reductions and computed indices need."""
    mask, indices = Vector("bool", lanes), Vector("int64", lanes)
    i = types.int64

    @intrinsic
    def first_lanes(_context: Any, _n: Any) -> Any:
        """The mask of lanes below `n`."""

        def codegen(_c: Any, b: Any, _sig: Any, args: Sequence[Any]) -> Any:
            short = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
            return b.icmp_signed("<", short, splat(b, b.trunc(args[0], I32), lanes))

        return mask(i), codegen

    @intrinsic
    def lane_numbers(_context: Any, _start: Any, _stride: Any) -> Any:
        """``start + lane * stride``"""

        def codegen(_c: Any, b: Any, _sig: Any, args: Sequence[Any]) -> Any:
            steps = b.mul(splat(b, args[1], lanes), iota(lanes))
            return b.add(splat(b, args[0], lanes), steps)

        return indices(i, i), codegen

    @intrinsic
    def splat_int(_context: Any, _x: Any) -> Any:
        """An int64 in every lane."""

        def codegen(_c: Any, b: Any, _sig: Any, args: Sequence[Any]) -> Any:
            return splat(b, args[0], lanes)

        return indices(i), codegen

    @intrinsic
    def first(_context: Any, _x: Any) -> Any:
        """Lane 0 of an int64 vector."""

        def codegen(_c: Any, b: Any, _sig: Any, args: Sequence[Any]) -> Any:
            return b.extract_element(args[0], I32(0))

        return i(indices), codegen

    @intrinsic(prefer_literal=True)
    def rotate(_context: Any, x: Any, by: Any) -> Any:
        """The lanes moved down by a literal number, around the end."""
        n = by.literal_value

        def codegen(_c: Any, b: Any, _sig: Any, args: Sequence[Any]) -> Any:
            order = [(k + n) % lanes for k in range(lanes)]
            pick = ir.Constant(ir.VectorType(I32, lanes), order)
            return b.shuffle_vector(args[0], ir.Constant(args[0].type, ir.Undefined), pick)

        return x(x, by), codegen

    @intrinsic
    def bounded(_context: Any, _index: Any, _size: Any, _live: Any, _flags: Any, _code: Any) -> Any:
        """`index` clamped to [0, size); where it was outside, ``*flags = code``."""

        def codegen(_c: Any, b: Any, _sig: Any, args: Sequence[Any]) -> Any:
            index, size, live, flags, code = args
            zero = constant("int64", 0, lanes)
            sizes = splat(b, size, lanes)
            low, high = b.icmp_signed("<", index, zero), b.icmp_signed(">=", index, sizes)
            bad = b.and_(b.or_(low, high), live)
            any_bad = call(b, f"llvm.vector.reduce.or.v{lanes}i1", ir.IntType(1), [bad])
            with b.if_then(any_bad, likely=False):
                b.store(code, b.bitcast(flags, I64.as_pointer()))
            last = b.sub(sizes, constant("int64", 1, lanes))
            return b.select(low, zero, b.select(high, last, index))

        return indices(indices, i, mask, types.voidptr, i), codegen

    return {
        "first_lanes": first_lanes, "lane_numbers": lane_numbers, "splat_int": splat_int,
        "first": first, "rotate": rotate, "bounded": bounded,
    }  # fmt: skip


def namespace(lanes: int) -> dict[str, Any]:
    """The globals of generated source for vectors of `lanes` lanes."""
    names: dict[str, Any] = {"word": word, "table": table, "pointer": pointer}
    names |= {"inf": float("inf"), "nan": float("nan")}
    names |= scalar_names(lanes)
    for dtype in MEMORY:
        names |= _memory_functions(dtype, lanes)
    return names | _lane_functions(lanes)
