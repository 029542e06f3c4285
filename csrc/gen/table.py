"""Prints the op table (`Op` in csrc/core/op.h) from the registry."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loops import COMPUTE, COMPUTE_TYPES, Gradient, Source, fold, forward_loop, gradients

from eager.op import Attr, Kind, Op

_ATTR_TYPES = {"int": "integer", "bool": "boolean", "float": "floating", "ints": "ints",
               "dtype": "dtype"}  # fmt: skip
_MAX_GRADIENT_ARGS = 6  # GradLoop::args


def _loops(names: Sequence[str | None]) -> str:
    return f"LOOPS({', '.join(n or 'none' for n in names)})"


def _forward(source: Source, op: Op) -> str:
    types = COMPUTE_TYPES[op.dtype]
    if types == ("bool",):  # the inputs are bool whatever the compute type
        return _loops([forward_loop(source, op, "bool")] * 3)
    return _loops([forward_loop(source, op, t) if t in types else None for t in COMPUTE])


def _gradient(op: Op, i: int, g: Gradient, lines: list[str]) -> str:
    if g.mode != "loop":
        return f"{{GradLoop::{g.mode}, 0, {{}}, nullptr}}"
    if len(g.args) > _MAX_GRADIENT_ARGS:
        raise ValueError(f"{op.name}: gradient {i} reads {len(g.args)} values")
    name = f"k_{op.name}_grad{i}"
    lines.append(f"const Loops {name} = {_loops(g.loops)};")
    args = ", ".join(map(str, g.args))
    return f"{{GradLoop::loop, {len(g.args)}, {{{args}}}, &{name}}}"


def _attributes(attrs: Sequence[Attr], name: str, lines: list[str]) -> tuple[str, str]:
    if not attrs:
        return "nullptr", "nullptr"
    types = ", ".join(f"AttrType::{_ATTR_TYPES[a.type]}" for a in attrs)
    names = ", ".join(f'"{a.name}"' for a in attrs)
    lines.append(f"const AttrType k_{name}_types[] = {{{types}}};")
    lines.append(f"const char* const k_{name}_names[] = {{{names}}};")
    return f"k_{name}_types", f"k_{name}_names"


def _kernel(op: Op) -> str:
    if op.impl == "core":
        return f"kernel_{op.name}"
    if op.impl == "generated":
        return "elementwise_kernel" if op.body is not None else "reduce_kernel"
    return "foreign_trampoline"


def _check(op: Op) -> None:
    if not re.fullmatch("[a-z][a-z0-9_]*", op.name):
        raise ValueError(f"op {op.name!r}: the name must be lower-case letters, digits and _")
    unknown = [a.type for a in op.attrs if a.type not in _ATTR_TYPES]
    if unknown:
        raise ValueError(f"op {op.name}: unknown attribute types {unknown}")
    if op.outputs == 0 and (not op.attrs or op.attrs[0] != Attr("sizes", "ints")):
        raise ValueError(f"op {op.name}: outputs=0 needs `sizes: ints` as the first attribute")


def _entry(source: Source, op: Op, lines: list[str]) -> str:
    """The initialiser of one `Op`; definitions it refers to are appended to `lines`."""
    _check(op)
    types, names = _attributes(op.attrs, op.name, lines)
    loops = folds = grads = "nullptr"
    if op.body is not None:
        lines.append(f"const Loops k_{op.name} = {_forward(source, op)};")
        loops = f"&k_{op.name}"
        if op.vjp is not None:
            entries = [_gradient(op, i, g, lines) for i, g in enumerate(gradients(source, op))]
            lines.append(f"const GradLoop k_{op.name}_grads[] = {{{', '.join(entries)}}};")
            grads = f"k_{op.name}_grads"
    elif op.reduce is not None:
        prefixes = [fold(source, op, t) for t in COMPUTE]
        lines.append(f"const Folds k_{op.name} = FOLDS({', '.join(prefixes)});")
        folds = f"&k_{op.name}"
    saves_output, saves_inputs = op.saved
    mask = sum(1 << i for i, saved in enumerate(saves_inputs) if saved)
    kind = Kind(op.kind).name.lower()
    boolean = {True: "true", False: "false"}
    fields = [
        f'"{op.name}"', str(op.id), f"Kind::{kind}", f"Promotion({int(op.dtype)})",
        boolean[op.indexed], str(-1 if op.variadic else len(op.inputs)), str(op.outputs),
        boolean[op.vjp is not None], boolean[saves_output], f"{mask}u", str(len(op.attrs)),
        types, names, _kernel(op), loops, folds, grads,
    ]  # fmt: skip
    return f"    {{{', '.join(fields)}}},"


def _declarations(source: Source) -> str:
    lines = []
    for name, text in source.functions.items():
        if text.startswith("EAGER_LOOP"):
            lines.append(f"  DeclaredLoop {name}; \\")
        else:
            lines.append(f"  DeclaredFold {name}_inner, {name}_outer, {name}_merge; \\")
            lines.append(f"  void {name}_identity(void*); \\")
    return "\n".join(lines)


def print_table(ops: Sequence[Op], registry_hash: str) -> tuple[Source, str]:
    """The functions that the table names, and the text of op_table.cpp."""
    source = Source()
    lines: list[str] = []
    for op in ops:  # before gradients, some of which are an op's forward loop: mul_f32 and others
        if op.body is not None:
            _forward(source, op)
    entries = [_entry(source, op, lines) for op in ops]
    kernels = sorted({_kernel(op) for op in ops})
    declared = "\n".join(
        f"Tensors {k}(const Op&, const Tensors&, const Attrs&, Tensor*);" for k in kernels
    )
    body = "\n".join(lines)
    table = "\n".join(entries)
    return (
        source,
        f"""// Printed from the op definitions; do not edit.
#include "core/op.h"

namespace eager::core {{

using DeclaredLoop = void(const void* const*, void* const*, int64_t, uint32_t, int64_t,
                          const int64_t*);
using DeclaredFold = void(const void*, int64_t, void*);
#define DECLARE_FUNCTIONS \\
  inline constexpr Loop none = nullptr; \\
{_declarations(source)}
  static_assert(true, "")

namespace isa_baseline {{
DECLARE_FUNCTIONS;
}}
#if defined(__x86_64__)
namespace isa_avx2 {{
DECLARE_FUNCTIONS;
}}
namespace isa_avx512 {{
DECLARE_FUNCTIONS;
}}
#else
namespace isa_avx2 = isa_baseline;
namespace isa_avx512 = isa_baseline;
#endif

#define ROW(isa, a, b, c) {{isa::a, isa::b, isa::c}}
#define LOOPS(a, b, c) \\
  {{{{ROW(isa_baseline, a, b, c), ROW(isa_avx2, a, b, c), ROW(isa_avx512, a, b, c)}}}}
#define FOLD(isa, f) {{isa::f##_inner, isa::f##_outer, isa::f##_merge, isa::f##_identity}}
#define FOLD_ROW(isa, a, b, c) {{FOLD(isa, a), FOLD(isa, b), FOLD(isa, c)}}
#define FOLDS(a, b, c)                                                \\
  {{{{FOLD_ROW(isa_baseline, a, b, c), FOLD_ROW(isa_avx2, a, b, c), \\
    FOLD_ROW(isa_avx512, a, b, c)}}}}

{declared}

namespace {{
{body}
}}  // namespace

extern const Op kOps[];
extern const int kOpCount;
extern const char kRegistryHash[];
const Op kOps[] = {{
{table}
}};
const int kOpCount = {len(ops)};
const char kRegistryHash[] = "{registry_hash}";

}}  // namespace eager::core
""",
    )
