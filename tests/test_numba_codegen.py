"""Printed bodies: every function on every dtype, every access, and that the code is vectors."""

import ctypes

import numpy as np
import pytest

import eager
from eager.layout import Layout
from eager.scalar import FUNCTIONS, vocabulary
from jit.codegen import target
from jit.codegen.numba import UNARY, print_body
from jit.fusion.bodies import Coder, body_of, normal
from jit.fusion.tile import Buffer, Fold, Load, Map, Reduce, Store, Term, compute_dtype, result
from jit.fusion.tile import variable as var
from jit.graph import numpy_dtype
from jit.runtime import native

k = vocabulary
BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


def execute(stage, arrays, *, lanes=None, split=None, cut=None):
    """Runs a stage on arrays, which are buffers 1, 2, ...; gives the error flag."""
    flag = np.zeros(1, np.int64)
    everything = [flag, *arrays]
    buffers = [
        Buffer(i, "int64" if i == 0 else a.dtype.name, a.size, "arena")
        for i, a in enumerate(everything)
    ]
    coder = Coder(buffers)
    words = np.array(coder.encode(stage, cut), np.int64)
    if lanes is None:
        (address,) = native.addresses(coder.bodies)
    else:
        text = print_body(coder.bodies[0], lanes, split=split, name="tile")
        address = native.load(native.compile_source(text, "tile", lanes))
    table = (ctypes.c_void_p * len(everything))(*[a.ctypes.data for a in everything])
    BODY(address)(ctypes.addressof(table), words.ctypes.data + 16)
    return int(flag[0])


def packed(*shape):
    return Layout.packed(shape)


# --- functions ---------------------------------------------------------------------------------

REFERENCE = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "abs": np.abs, "min": np.minimum, "max": np.maximum, "floordiv": np.floor_divide,
    "mod": np.remainder, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "sqrt": np.sqrt, "exp": np.exp,
    "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "sin": np.sin, "cos": np.cos,
    "tanh": np.tanh, "floor": np.floor, "ceil": np.ceil, "round": np.rint, "trunc": np.trunc,
    "isnan": np.isnan, "rsqrt": lambda x: 1 / np.sqrt(x), "pow": np.power,
    "fma": lambda a, b, c: a * b + c,
}  # fmt: skip
ARITY = {fn: 1 if fn in UNARY else 3 if fn in ("where", "fma") else 2 for fn in FUNCTIONS}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fn", sorted(REFERENCE))
def test_functions_of_floats(fn, dtype):
    rng = np.random.default_rng(0)
    positive = fn in ("sqrt", "rsqrt", "log", "log1p", "pow")
    xs = [rng.normal(size=53).astype(dtype) * 3 for _ in range(ARITY[fn])]
    if positive:
        xs[0] = np.abs(xs[0])
    value = k.call(fn, *(var(i, dtype) for i in range(len(xs))))
    out = np.zeros(53, bool if value.dtype == "bool" else dtype)
    loads = [Load(i + 1, packed(53)) for i in range(len(xs))]
    execute(Map((53,), loads, [Store(len(xs) + 1, packed(53), value)]), [*xs, out])
    expected = REFERENCE[fn](*xs)
    np.testing.assert_allclose(out, expected, rtol=2e-6 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("fn", ["exp", "expm1", "log", "log1p", "tanh", "sin", "cos", "erf"])
def test_float32_functions_equal_the_eager_kernels(fn):
    """Both come from one definition."""
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 88.8, -104.0, 1e30]
    x = np.concatenate([np.random.default_rng(1).normal(size=500) * 8, special]).astype(np.float32)
    out = np.zeros_like(x)
    value = k.call(fn, var(0, "float32"))
    execute(Map(x.shape, [Load(1, packed(x.size))], [Store(2, packed(x.size), value)]), [x, out])
    expected = getattr(eager, fn)(eager.from_numpy(x)).numpy()
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "fn", ["add", "sub", "mul", "neg", "abs", "min", "max", "and_", "or_", "xor", "not_", "lt",
           "eq", "floor", "fma", "where"]
)  # fmt: skip
def test_functions_of_integers(fn):
    rng = np.random.default_rng(0)
    numpy_fn = {
        "and_": np.bitwise_and, "or_": np.bitwise_or, "xor": np.bitwise_xor,
        "not_": np.invert, "where": lambda c, a, b: np.where(c != 0, a, b),
    }.get(fn) or REFERENCE[fn]  # fmt: skip
    xs = [rng.integers(-(2**62), 2**62, 37) for _ in range(ARITY[fn])]
    args = [var(i, "int64") for i in range(len(xs))]
    if fn == "where":
        xs[0] %= 2
        args[0] = k.ne(args[0], 0)
    value = k.call(fn, *args)
    out = np.zeros(37, bool if value.dtype == "bool" else np.int64)
    loads = [Load(i + 1, packed(37)) for i in range(len(xs))]
    execute(Map((37,), loads, [Store(len(xs) + 1, packed(37), value)]), [*xs, out])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, numpy_fn(*xs))


def test_integer_powers():
    base, exponent = (a.ravel() for a in np.meshgrid([-3, -2, -1, 0, 1, 2, 7], [-2, -1, 0, 1, 5]))
    out = np.zeros(35, np.int64)
    loads = [Load(1, packed(35)), Load(2, packed(35))]
    value = k.pow(var(0, "int64"), var(1, "int64"))
    execute(Map((35,), loads, [Store(3, packed(35), value)]), [base.copy(), exponent.copy(), out])
    expected = [int(float(b) ** int(e)) if b else int(e == 0)
                for b, e in zip(base, exponent, strict=True)]  # fmt: skip
    assert out.tolist() == expected


# --- memory ------------------------------------------------------------------------------------

DTYPES = ["float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8",
          "bool"]  # fmt: skip


def sample(dtype: str, *shape: int):
    x = np.random.default_rng(3).integers(0, 2 if dtype == "bool" else 100, shape)
    return x.astype(numpy_dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_accesses_of_every_dtype(dtype):
    """Contiguous, strided, reversed, broadcast and one element; the rest of memory stays."""
    x = sample(dtype, 5, 40)
    v = var(0, compute_dtype(dtype))
    for source, view in [
        (packed(5, 40), x),
        (Layout((40, 5), (1, 40)), x.T),
        (Layout((5, 20), (40, 2), 1), x[:, 1::2]),
        (Layout((5, 40), (40, -1), 39), x[:, ::-1]),
        (Layout((3, 40), (0, 1), 40), np.broadcast_to(x[1], (3, 40))),
        (Layout((5, 7), (40, 0), 3), np.broadcast_to(x[:, 3:4], (5, 7))),
        (Layout((), (), 17), x.ravel()[17]),
    ]:
        shape = source.shape
        out = sample(dtype, 2000)
        before = out.copy()
        strides = Layout.packed(shape)
        execute(Map(shape, [Load(1, source)], [Store(2, strides._replace(offset=3), v)]), [x, out])
        np.testing.assert_array_equal(out[3 : 3 + view.size].reshape(shape), view)
        np.testing.assert_array_equal(out[3 + view.size :], before[3 + view.size :])
        scattered = Layout(shape, tuple(2 * s for s in strides.strides), 3)
        out[...] = before
        execute(Map(shape, [Load(1, source)], [Store(2, scattered, v)]), [x, out])
        np.testing.assert_array_equal(out[3:][: 2 * view.size : 2].reshape(shape), view)
        np.testing.assert_array_equal(out[4:][: 2 * view.size : 2], before[4:][: 2 * view.size : 2])


@pytest.mark.parametrize(("lanes", "split"), [(16, True), (8, True), (8, False), (4, True)])
def test_other_instruction_sets(lanes, split):
    """What is printed for machines with shorter vectors and without masks runs here as well."""
    for n in (1, 3, 16, 41):
        x, y = sample("float32", 6, n), sample("bool", n)
        out, sums, columns = (np.zeros(s, np.float32) for s in [(6, n), (6,), (n,)])
        a, b = var(0, "float32"), k.cast(var(1, "bool"), "float32")
        loads = [Load(1, packed(6, n)), Load(2, Layout((6, n), (0, 1)))]
        execute(Map((6, n), loads, [Store(3, packed(6, n), a * b)]), [x, y, out],
                lanes=lanes, split=split)  # fmt: skip
        np.testing.assert_array_equal(out, x * y)
        fold = Fold(a * b, k.arg("a", "float32") + k.arg("b", "float32"), 0)
        final = result(0, "float32")
        execute(Reduce((6, n), 1, loads, [fold], [], [Store(3, packed(6), final)]), [x, y, sums],
                lanes=lanes, split=split)  # fmt: skip
        np.testing.assert_allclose(sums, (x * y).sum(1))
        turned = [Load(1, Layout((n, 6), (1, n))), Load(2, Layout((n, 6), (1, 0)))]
        execute(Reduce((n, 6), 1, turned, [fold], [], [Store(3, packed(n), final)]),
                [x, y, columns], lanes=lanes, split=split)  # fmt: skip
        np.testing.assert_allclose(columns, (x * y).sum(0))


def test_iota():
    out = np.zeros((3, 20), np.int64)
    iota = Load(None, Layout((3, 20), (100, 2), 5))
    execute(Map((3, 20), [iota], [Store(1, packed(3, 20), var(0, "int64"))]), [out])
    np.testing.assert_array_equal(out, 5 + 100 * np.arange(3)[:, None] + 2 * np.arange(20))


@pytest.mark.parametrize("along", [False, True])
def test_computed_indices(along):
    """Constant along the lanes (rows are copied) and varying (elements are gathered)."""
    x, index = sample("float32", 9, 40), np.array([8, 0, 3])
    if along:
        shape, place, layout = (9, 3), Layout((9, 3), (0, 1)), Layout((9, 3), (40, 0))
        term, expected = Term(var(0, "int64"), 40, 1), x[:, index]
    else:
        shape, place, layout = (3, 40), Layout((3, 40), (1, 0)), Layout((3, 40), (0, 1))
        term, expected = Term(var(0, "int64"), 9, 40), x[index]
    out = np.zeros(shape, np.float32)
    loads = [Load(1, place), Load(2, layout, (term,))]
    stage = Map(shape, loads, [Store(3, packed(*shape), var(1, "float32"))])
    assert execute(stage, [index, x, out]) == 0
    np.testing.assert_array_equal(out, expected)
    assert execute(stage, [np.array([0, 100, 1]), x, out]) == 1 + 2


# --- reductions --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 33), (5, 1, 40), (4, 3, 20)])
@pytest.mark.parametrize("kept", [0, 1])
def test_reductions_along_every_dimension(shape, kept):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for order in ([*range(len(shape))], [*reversed(range(len(shape)))]):
        source = packed(*shape).permute(order)
        moved = x.transpose(order)
        v, a, b = var(0, "float32"), k.arg("a", "float32"), k.arg("b", "float32")
        folds = [Fold(v, a + b, 0), Fold(v * v, k.max(a, b), -np.inf)]
        results = source.shape[:kept]
        total, most, bias = (np.zeros(results, np.float32) for _ in range(3))
        stores = [
            Store(2, packed(*results), result(0, "float32")),
            Store(3, packed(*results), k.sqrt(result(1, "float32")) + var(1, "float32")),
        ]
        tail = [Load(4, packed(*results))]
        execute(Reduce(source.shape, kept, [Load(1, source)], folds, tail, stores),
                [x, total.reshape(-1), most.reshape(-1), bias.reshape(-1)])  # fmt: skip
        axes = tuple(range(kept, len(shape)))
        np.testing.assert_allclose(total, moved.sum(axes), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(most, np.abs(moved).max(axes), rtol=1e-6)


# --- code --------------------------------------------------------------------------------------


def lstm_cell() -> Map:
    i, f, g, o, c = (var(j, "float32") for j in range(5))

    def sigmoid(x):
        return 1.0 / (k.exp(-x) + 1.0)

    new = sigmoid(f) * c + sigmoid(i) * k.tanh(g)
    hidden = sigmoid(o) * k.tanh(new)
    space = packed(64, 64)
    loads = [Load(j + 1, space) for j in range(5)]
    return Map((64, 64), loads, [Store(6, space, new), Store(7, space, hidden)])


def buffers(n: int) -> list[Buffer]:
    return [Buffer(0, "int64", 1, "flags")] + [
        Buffer(j + 1, "float32", 4096, "arena") for j in range(n)
    ]


def test_source_is_readable():
    text = native.source(body_of(normal(lstm_cell()), buffers(7)))
    assert text.startswith("def tile(buffers, ins):\n")
    assert "tanh(x2)" in text and "exp(" in text
    assert max(map(len, text.splitlines())) < 100


@pytest.mark.skipif(not target.has("avx2"), reason="the machine has short vectors")
def test_code_is_vectors():
    """No call, no scalar float arithmetic, the widest registers."""
    import subprocess
    import tempfile
    from shutil import which

    if which("objdump") is None:
        pytest.skip("no objdump")
    code = native.compile_source(native.source(body_of(normal(lstm_cell()), buffers(7))), "tile")
    with tempfile.NamedTemporaryFile(suffix=".o") as f:
        f.write(code.partition(b"\n")[2])
        f.flush()
        text = subprocess.run(
            ["objdump", "-d", f.name], capture_output=True, text=True, check=True
        ).stdout
    register = "zmm" if target.has("avx512f") else "ymm"
    assert text.count(register) > 100
    assert "vmulss" not in text and "vaddss" not in text
    assert text.count("call ") <= 1  # of the C entry point


def test_bodies_are_shared():
    """Extents, offsets and buffers are words, not code."""
    coder = Coder(buffers(3))
    value = var(0, "float32") * 2.0
    for n, offset in [(8, 0), (16, 3), (40, 7)]:
        space = packed(n, n)
        stage = Map((n, n), [Load(1, space._replace(offset=offset))], [Store(2, space, value)])
        coder.encode(stage, None)
    assert len(coder.bodies) == 1
