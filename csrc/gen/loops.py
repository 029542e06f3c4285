"""Turns op definitions into C++ loops over contiguous elements.

The contract of the printed functions (`Loop`, `FoldLoops`) is in csrc/core/op.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from eager.op import Op, Promotion
from eager.scalar import Expr, vocabulary
from jit.codegen.c import CPP
from jit.codegen.printer import free_arguments, postorder, print_expressions

COMPUTE = ("float32", "float64", "int64")
SUFFIX = {"float32": "f32", "float64": "f64", "int64": "i64", "bool": "b8"}
ITEM_SIZE = {"float32": 4, "float64": 8, "int64": 8, "bool": 1}
# The dtype in memory; bool is one byte, 0 or 1.
STORAGE = {**CPP.types, "bool": "unsigned char"}

_FLOATS = ("float32", "float64")
# For which compute types an op's forward loop exists.
COMPUTE_TYPES: dict[Promotion, tuple[str, ...]] = {
    Promotion.PROMOTE: COMPUTE,
    Promotion.FLOAT: _FLOATS,
    Promotion.COMPARE: COMPUTE,
    Promotion.LOGICAL: ("bool",),
    Promotion.INTEGRAL: ("int64",),
    Promotion.NUMERIC: COMPUTE,
    Promotion.SELECT: COMPUTE,
    Promotion.ATTR: COMPUTE,
    Promotion.FIRST: _FLOATS,
    Promotion.FLOATING: _FLOATS,
    Promotion.SUM: COMPUTE,
    Promotion.INDEX: ("int64",),
    Promotion.BOOL: COMPUTE,
}
# Binary loops of up to this many operations get a variant for each input being uniform.
_CHEAP = 4


@dataclass
class Source:
    """The printed functions, each once: equal text under two names is one function."""

    functions: dict[str, str] = field(default_factory=dict)  # name -> text
    _names: dict[str, str] = field(default_factory=dict)  # text without the name -> name

    def add(self, name: str, text: str) -> str:
        """Adds a function whose text spells its own name ``@``; gives the name to call it by."""
        if text not in self._names:
            self._names[text] = name
            self.functions[name] = text.replace("@", name)
        return self._names[text]


def _memory(arg: Expr) -> str:
    return STORAGE[arg.dtype]


def _variant(
    roots: Sequence[Expr], inputs: Sequence[Expr], uniform: int, given: Sequence[str]
) -> list[str]:
    """One loop, with the inputs in the bit set `uniform` read once before it."""
    names = {x: f"x{i}" for i, x in enumerate(inputs)}
    fixed = [x for i, x in enumerate(inputs) if uniform >> i & 1]
    attrs = [a for a in free_arguments(roots) if str(a.value) in given]
    printed = print_expressions(CPP, roots, names=names, invariant=[*fixed, *attrs])
    reads = set(free_arguments(roots))
    head, loads, stores = [], [], []
    for i, x in enumerate(inputs):
        if x not in reads:
            continue
        pointer = f"static_cast<const {_memory(x)}*>(in[{i}])"
        test = " != 0" if x.dtype == "bool" else ""
        if x in fixed:
            head.append(f"const {CPP.types[x.dtype]} x{i} = *{pointer}{test};")
        else:
            head.append(f"const {_memory(x)}* p{i} = {pointer};")
            loads.append(f"const {CPP.types[x.dtype]} x{i} = p{i}[i]{test};")
    if any(a.value == "index" for a in reads):
        loads.append("const int64_t index = first + i;")
    for i, (root, result) in enumerate(zip(roots, printed.results, strict=True)):
        head.append(f"{_memory(root)}* q{i} = static_cast<{_memory(root)}*>(out[{i}]);")
        stores.append(f"q{i}[i] = {result};")
    inner = [*loads, *printed.body, *stores]
    return [
        *head,
        *printed.hoisted,
        "EAGER_INDEPENDENT",
        "for (int64_t i = 0; i < n; ++i) {",
        *(f"  {line}" for line in inner),
        "}",
    ]


def _sizes(name: str, values: Sequence[Expr]) -> str:
    sizes = ", ".join(str(ITEM_SIZE[v.dtype]) for v in values)
    return f"static const uint8_t {name}[] = {{{sizes}}};"


def loop_text(
    roots: Sequence[Expr],
    inputs: Sequence[Expr],
    always_uniform: int = 0,
    given: Sequence[str] = (),
    slots: Sequence[str] = (),
) -> str:
    """A `Loop` that computes `roots`, one per output, from `inputs`.

    Args:
        roots: one expression per output.
        inputs: the "arg" expressions of the loop's inputs, in order.
        always_uniform: bit set of inputs that in practice hold one element.
        given: names of the "arg" expressions that hold attributes.
        slots: C++ declarations of these.
    """
    lines = [*slots]
    operations = sum(1 for e in postorder(roots) if e.args)
    if always_uniform:
        lines.append(f"if (n == 1 || uniform == {always_uniform}u) {{")
        lines += [f"  {line}" for line in _variant(roots, inputs, always_uniform, given)]
        lines += ["  return;", "}"]
        rest = "eager_singly"
    else:
        masks = [0, 1, 2] if len(inputs) == 2 and operations <= _CHEAP else [0]
        for mask in masks if inputs else []:
            one = "n == 1 || " if mask == 0 else ""
            lines.append(f"if ({one}uniform == {mask}u) {{")
            lines += [f"  {line}" for line in _variant(roots, inputs, mask, given)]
            lines += ["  return;", "}"]
        rest = "eager_blocks"
    if inputs:
        lines += [_sizes("kIn", inputs), _sizes("kOut", roots)]
        lines.append(f"{rest}(@, kIn, kOut, in, out, n, uniform, first, attrs);")
    else:
        lines += _variant(roots, inputs, 0, given)
    return "\n".join(["EAGER_LOOP(@) {", *(f"  {line}" for line in lines), "}"])


def _attributes(op: Op) -> tuple[dict[str, Expr], list[str]]:
    """Expressions of the attributes a loop is given, and the declarations that read them."""
    exprs: dict[str, Expr] = {}
    declarations = []
    slot = 0
    for attr in op.attrs:
        if attr.type in ("ints", "dtype"):
            continue
        kind = "float64" if attr.type == "float" else "int64"
        name = f"attr_{attr.name}"
        read = f"eager_bits(attrs[{slot}])" if kind == "float64" else f"attrs[{slot}]"
        exprs[attr.name] = vocabulary.arg(name, kind)
        declarations.append(f"[[maybe_unused]] const {CPP.types[kind]} {name} = {read};")
        slot += 1
    return exprs, declarations


def _input_dtype(op: Op, i: int, dtype: str) -> str:
    if op.indexed:
        return "int64"
    if op.dtype is Promotion.LOGICAL or (op.dtype is Promotion.SELECT and i == 0):
        return "bool"
    return dtype


def _inputs(op: Op, dtype: str) -> list[Expr]:
    return [vocabulary.arg(name, _input_dtype(op, i, dtype)) for i, name in enumerate(op.inputs)]


def forward_loop(source: Source, op: Op, dtype: str) -> str:
    """Prints the forward loop of an elementwise op; gives its name."""
    inputs = _inputs(op, dtype)
    attrs, slots = _attributes(op)
    roots = op.evaluate(inputs, dtype, attrs, vocabulary.arg("index", "int64"))
    if len(roots) != op.outputs:
        raise TypeError(f"{op.name}: the body gives {len(roots)} results, not {op.outputs}")
    mask = sum(1 << i for i, name in enumerate(op.inputs) if name in op.uniform)
    if op.indexed:
        mask = (1 << len(op.inputs)) - 1
    text = loop_text(roots, inputs, mask, [str(a.value) for a in attrs.values()], slots)
    return source.add(f"{op.name}_{SUFFIX[dtype]}", text)


@dataclass(frozen=True)
class Gradient:
    """One input's gradient: mode "none", "pass" or "loop" as in `GradLoop`."""

    mode: str
    args: tuple[int, ...] = ()
    loops: tuple[str | None, str | None, None] = (None, None, None)


def gradients(source: Source, op: Op) -> list[Gradient]:
    """Prints the gradient loops of an elementwise op, from its vjp on scalar expressions.

    Raises:
        TypeError: the vjp reads a value whose parameter name says that it does not.
    """
    assert op.vjp is not None
    found: list[dict[str, tuple[str, tuple[int, ...], str | None]]] = [{} for _ in op.inputs]
    for dtype in _FLOATS:
        inputs = _inputs(op, dtype)
        g, y = vocabulary.arg("g", dtype), vocabulary.arg("y", dtype)
        sources = [g, y, *inputs]
        attrs, slots = _attributes(op)
        given = [str(a.value) for a in attrs.values()]
        values = {
            a.name: dtype if a.type == "dtype" else vocabulary.cast(attrs[a.name], dtype)
            for a in op.attrs
            if a.type != "ints"
        }
        results = op.vjp(g, y, *inputs, **values)
        if len(results) != len(inputs):
            raise TypeError(f"{op.name}: the vjp gives {len(results)} gradients")
        saves_y, saves_x = op.saved
        readable = {g, *([y] if saves_y else [])}
        readable |= {x for x, saved in zip(inputs, saves_x, strict=True) if saved}
        for i, value in enumerate(results):
            if value is None or value is g:
                found[i][dtype] = ("none" if value is None else "pass", (), None)
                continue
            read = [a for a in free_arguments([value]) if str(a.value) not in given]
            hidden = [str(a.value) for a in read if a not in readable]
            if hidden:
                raise TypeError(f"{op.name}: the vjp reads {hidden}, named with an underscore")
            args = tuple(j for j, a in enumerate(sources) if a in read)
            text = loop_text([value], [sources[j] for j in args], 0, given, slots)
            name = source.add(f"{op.name}_grad{i}_{SUFFIX[dtype]}", text)
            found[i][dtype] = ("loop", args, name)
    out = []
    for per_dtype in found:
        (mode, args, single), (mode64, args64, double) = (per_dtype[d] for d in _FLOATS)
        if (mode, args) != (mode64, args64):
            raise TypeError(f"{op.name}: the vjp's form depends on the dtype")
        out.append(Gradient(mode, args, (single, double, None)))
    return out


def fold(source: Source, op: Op, dtype: str) -> str:
    """Prints the four functions of a reduction (`FoldLoops`); gives their common prefix."""
    assert op.reduce is not None
    k = vocabulary
    x, a, b = k.arg("x", dtype), k.arg("a", dtype), k.arg("b", dtype)

    def function(head: str, root: Expr) -> str:
        printed = print_expressions(CPP, [root])
        statements = " ".join([*printed.hoisted, *printed.body])
        return f"{head} {{ {statements} return {printed.results[0]}; }}"

    identity = op.reduce.identity
    if isinstance(identity, str):
        sign = -1 if identity == "lowest" else 1
        limit = 2**63 - 1 if sign > 0 else -(2**63)
        identity = limit if dtype == "int64" else sign * float("inf")
    mapped = k.cast(op.reduce.map(k, x), dtype)
    combined = k.cast(op.reduce.combine(k, a, b), dtype)
    t = CPP.types[dtype]
    text = f"""struct @ {{
  using T = {t};
  static T identity() {{ return {CPP.constant(identity, dtype)}; }}
  {function("static T map(T x)", mapped)}
  {function("static T combine(T a, T b)", combined)}
}};
void @_inner(const void* x, int64_t n, void* out) {{ fold_inner<@>(x, n, out); }}
void @_outer(const void* x, int64_t n, void* acc) {{ fold_outer<@>(x, n, acc); }}
void @_merge(const void* x, int64_t n, void* acc) {{ fold_merge<@>(x, n, acc); }}
void @_identity(void* out) {{ *static_cast<{t}*>(out) = @::identity(); }}"""
    return source.add(f"{op.name}_{SUFFIX[dtype]}", text)
