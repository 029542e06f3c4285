"""The printer of scalar expressions and the loops the build prints from op definitions."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eager import scalar_math
from eager.op import Kind, Op, Promotion, registry
from eager.scalar import FUNCTIONS, Expr, vocabulary
from jit.codegen.c import CPP, constant
from jit.codegen.printer import free_arguments, postorder, print_expressions

ROOT = Path(__file__).resolve().parents[1]
k = vocabulary
x, y = k.arg("x", "float32"), k.arg("y", "float32")


def test_equal_subexpressions_are_printed_once() -> None:
    printed = print_expressions(CPP, [(x + y) * (x + y), x + y])
    assert printed.body == ["const float t0 = x + y;", "const float t1 = t0 * t0;"]
    assert printed.results == ["t1", "t0"]


def test_what_is_invariant_is_hoisted() -> None:
    printed = print_expressions(CPP, [x * k.sqrt(y)], invariant=[y])
    assert printed.hoisted == ["const float t0 = __builtin_sqrtf(y);"]
    assert printed.body == ["const float t1 = x * t0;"]


def test_what_has_no_template_is_expanded() -> None:
    (root,) = CPP.expand([k.tanh(x)])
    names = {e.fn for e in postorder([root])}
    assert "tanh" not in names
    assert names <= {*FUNCTIONS, "arg", "const"}
    assert free_arguments([root]) == [x]


def test_every_function_prints_for_every_dtype_it_is_meant_for() -> None:
    floats_only = {
        "fma",
        "sqrt",
        "rsqrt",
        "exp",
        "expm1",
        "log",
        "log1p",
        "sin",
        "cos",
        "tanh",
        "erf",
    }
    for fn in FUNCTIONS:
        for dtype in ("float32", "float64", "int64"):
            bitwise = fn in ("and_", "or_", "xor", "not_", "shl", "shr")
            if (dtype == "int64" and fn in floats_only) or (dtype != "int64" and bitwise):
                continue
            a, b = k.arg("a", dtype), k.arg("b", dtype)
            arity = {"fma": 3}.get(fn, 2 if fn in _BINARY else 1)
            if fn == "where":
                e = k.where(a < b, a, b)
            elif fn == "cast":
                e = k.cast(a, "float64" if dtype == "float32" else "float32")
            else:
                e = k.call(fn, *(a, b, a)[:arity])
            assert print_expressions(CPP, [e]).results


_BINARY = {
    "add", "sub", "mul", "div", "floordiv", "mod", "min", "max", "lt", "le", "gt", "ge", "eq", "ne",
    "and_", "or_", "xor", "shl", "shr", "pow",
}  # fmt: skip


def test_an_unknown_function_is_named() -> None:
    strange = Expr("mystery", (x,), "float32")
    with pytest.raises(NotImplementedError, match="mystery of float32"):
        print_expressions(CPP, [strange])


def test_deep_expressions_need_no_recursion() -> None:
    e = x
    for _ in range(20_000):
        e = e + 1.0
    assert len(print_expressions(CPP, [e]).body) == 20_000


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constants_are_exact(dtype: str) -> None:
    rng = np.random.default_rng(0)
    real = np.dtype(dtype).type
    bits = rng.integers(0, 2**63, 500).astype(np.uint64).view(np.float64)
    for value in [0.1, -2.5, 1e-45, 3.4028235e38, 5e-324, *bits[np.isfinite(bits)]]:
        with np.errstate(over="ignore"):
            wanted = real(value)
        text = constant(float(value), dtype).strip("()").removesuffix("f")
        if math.isinf(wanted):
            assert "__builtin_inf" in text
        else:
            assert real(text) == wanted
    assert constant(-0.0, dtype) in ("(-0.0f)", "(-0.0)", "(-0f)")
    assert "nan" in constant(math.nan, dtype)


def test_integer_constants() -> None:
    assert constant(5, "int64") == "INT64_C(5)"
    assert constant(-5, "int32") == "(-INT32_C(5))"
    assert constant(-(2**63), "int64") == "(-INT64_C(9223372036854775807) - 1)"
    with pytest.raises(ValueError, match="does not fit int32"):
        constant(2**31, "int32")


def test_expansions_are_vocabulary_functions() -> None:
    assert {fn for fn, _ in scalar_math.EXPANSIONS} <= set(FUNCTIONS)


# --- the printed loops ----------------------------------------------------------------------------


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "csrc" / "gen"))
    import loops

    return loops


def _op(name: str, vjp: Any) -> Op:
    return Op(
        name, Kind.ELEMENTWISE, ("a", "b"), 1, (), Promotion.PROMOTE, vjp, "generated", None, None,
        None, body=lambda k, a, b: a * b,
    )  # fmt: skip


def test_gradient_forms(loops: Any) -> None:
    source = loops.Source()
    passed, nothing = loops.gradients(source, _op("f", lambda g, _y, _a, _b: (g, None)))
    assert (passed.mode, nothing.mode) == ("pass", "none")
    (left, right) = loops.gradients(source, _op("h", lambda g, y, _a, b: (g * b, g * y * b)))
    assert left.args == (0, 3)
    assert right.args == (0, 1, 3)


def test_a_vjp_must_not_read_what_its_names_deny(loops: Any) -> None:
    with pytest.raises(TypeError, match=r"f: the vjp reads \['b'\]"):
        loops.gradients(loops.Source(), _op("f", lambda g, _y, a, _b: (g * _b, g * a)))


def test_every_elementwise_gradient_prints(loops: Any) -> None:
    source = loops.Source()
    for op in registry.values():
        if op.body is not None and op.vjp is not None:
            assert len(loops.gradients(source, op)) == len(op.inputs)


def test_equal_loops_are_one_function(loops: Any) -> None:
    source = loops.Source()
    name = loops.forward_loop(source, registry["mul"], "float32")
    (grad, _) = loops.gradients(source, _op("f", lambda g, _y, _a, b: (g * b, None)))
    assert grad.loops[0] == name


_SUMS = """
import hashlib, numpy as np, eager
rng = np.random.default_rng(0)
x = eager.from_numpy(rng.normal(size=(300, 1001)).astype(np.float32))
found = hashlib.sha256()
for t in (x.sum(), x.sum(0), x.sum(1), eager.amax(x, 1), eager.prod(x, 0), x.double().sum(1)):
    found.update(t.numpy().tobytes())
print(found.hexdigest())
"""


def test_reductions_do_not_depend_on_the_instruction_set() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", _SUMS], env={**os.environ, "EAGER_ISA": isa},
            capture_output=True, text=True, check=True,
        ).stdout
        for isa in ("baseline", "avx2", "avx512")
    }  # fmt: skip
    assert len(digests) == 1
