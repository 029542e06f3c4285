"""Passes: each rule, bit for bit; random programs keep their results; gradients are eager's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eager
from eager.op import registry
from jit import passes, segments
from jit.fusion import compile_segment
from jit.graph import Builder, Graph, evaluate, scalar
from jit.parser import parse
from jit.passes import cse, dce, simplify
from jit.passes.autodiff import differentiate, partition
from jit.verify import verify


def optimised(text: str) -> str:
    return str(passes.run(parse(text)))


def body(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()[1:-1]]


# --- rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "mul(%0, 1.0)", "mul(1, %0)", "div(%0, 1)", "add(%0, -0.0)", "add(-0.0, %0)",
        "sub(%0, 0.0)", "clone(%0)", "detach(%0)", "cast(%0; dtype=f32)",
        "maximum(%0, %0)", "where(true, %0, 2.0)", "where(bool[](false), 2.0, %0)",
        "reshape(%0; shape=[2,3])", "permute(%0; dims=[0,1])", "expand(%0; shape=[2,3])",
        "slice(%0; starts=[0,0], sizes=[2,3], steps=[1,1], drop=[])", "cat(%0; dim=0)",
        "mul(%0, f32[](1.0))",
    ],
)  # fmt: skip
def test_calls_without_effect_vanish(call):
    text = f"graph(%0: f32[2,3]) {{ %1: f32[2,3] = {call} %2: f32[2,3] = exp(%1) return %2 }}"
    assert body(optimised(text)) == ["%1: f32[2,3] = exp(%0)", "return %1"]


@pytest.mark.parametrize(
    "call",
    [
        "add(%0, 0.0)",  # -0.0 becomes 0.0
        "sub(%0, -0.0)", "mul(%0, 0.0)", "sub(%0, %0)", "div(1.0, %0)", "sub(0.0, %0)",
        "sum(%0; dims=[], keepdim=false)",
    ],
)  # fmt: skip
def test_rewrites_that_would_change_bits_are_not_done(call):
    text = f"graph(%0: f32[2,3]) {{ %1: f32[2,3] = {call} return %1 }}"
    assert call in optimised(text)


@pytest.mark.parametrize(
    ("calls", "result"),
    [
        ("%1: f32[2,3] = neg(%0) %2: f32[2,3] = neg(%1)", "return %0"),
        ("%1: f32[3,2] = reshape(%0; shape=[3,2]) %2: f32[6] = reshape(%1; shape=[6])",
         "%1: f32[6] = reshape(%0; shape=[6])"),
        ("%1: f32[3,2] = reshape(%0; shape=[3,2]) %2: f32[2,3] = reshape(%1; shape=[2,3])",
         "return %0"),
        ("%1: f32[3,2] = permute(%0; dims=[1,0]) %2: f32[2,3] = permute(%1; dims=[1,0])",
         "return %0"),
        ("%1: f32[2,2,3] = expand(%0; shape=[2,2,3]) %2: f32[4,2,2,3] = "
         "expand(%1; shape=[4,2,2,3])", "%1: f32[4,2,2,3] = expand(%0; shape=[4,2,2,3])"),
        ("%1: f32[2,2] = slice(%0; starts=[0,1], sizes=[2,2], steps=[1,1], drop=[]) "
         "%2: f32[2] = slice(%1; starts=[0,1], sizes=[2,1], steps=[1,1], drop=[1])",
         "%1: f32[2] = slice(%0; starts=[0,2], sizes=[2,1], steps=[1,1], drop=[1])"),
        ("%1: f32[2,1], %3: f32[2,2] = split(%0; sizes=[1,2], dim=1) "
         "%2: f32[2] = slice(%3; starts=[0,1], sizes=[2,1], steps=[1,1], drop=[1])",
         "%1: f32[2] = slice(%0; starts=[0,2], sizes=[2,1], steps=[1,1], drop=[1])"),
        ("%1: f64[2,3] = cast(%0; dtype=f64) %2: f16[2,3] = cast(%1; dtype=f16)",
         "%1: f16[2,3] = cast(%0; dtype=f16)"),
        ("%1: f64[2,3] = cast(%0; dtype=f64) %2: f32[2,3] = cast(%1; dtype=f32)", "return %0"),
        ("%1: f32[2,3] = full(; value=1.0, shape=[2,3], dtype=f32) %2: f32[2,3] = mul(%0, %1)",
         "return %0"),
        ("%1: f32[] = add(f32[](1.5), 2.0) %2: f32[2,3] = mul(%0, %1)",
         "%1: f32[2,3] = mul(%0, f32[](3.5))"),
    ],
)  # fmt: skip
def test_pairs_of_calls_become_one(calls, result):
    text = f"graph(%0: f32[2,3]) {{ {calls} return %2 }}"
    assert body(optimised(text))[0] == result


def test_a_narrowing_cast_stays():
    text = """graph(%0: f32[2]) {
      %1: f16[2] = cast(%0; dtype=f16) %2: f32[2] = cast(%1; dtype=f32) return %2 }"""
    assert len(parse(optimised(text)).nodes) == 2


def test_cse_merges_equal_calls_only():
    graph = parse("""graph(%0: f32[2]) {
      %1: f32[2] = add(%0, 0.0)
      %2: f32[2] = add(%0, 0.0)
      %3: f32[2] = add(%0, -0.0)
      %4: f32[2] = add(%0, 0)
      %5: f32[2] = mul(%1, %2)
      %6: f32[] = sum(%5; dims=[0], keepdim=false)
      %7: f32[1] = sum(%5; dims=[0], keepdim=true)
      return %6, %7, %3, %4
    }""")
    assert len(verify(cse(graph)).nodes) == len(graph.nodes) - 1


def test_dce_keeps_what_outputs_need():
    graph = parse("""graph(%0: f32[4], %1: f32[4]) {
      %2: f32[4] = exp(%0)
      %3: f32[4] = exp(%1)
      %4: f32[2], %5: f32[2] = split(%3; sizes=[2,2], dim=0)
      return %5
    }""")
    cleaned = verify(dce(graph))
    assert [n.op.name for n in cleaned.nodes] == ["exp", "split"]
    assert len(cleaned.inputs) == 2


def test_a_scatter_of_one_element_per_row_becomes_a_comparison():
    text = """graph(%0: f32[3,4], %1: i64[3,1], %2: f32[3,1]) {
      %3: f32[3,1] = gather(%0, %1; dim=1)
      %4: f32[3,1] = mul(%3, %2)
      %5: f32[3,4] = scatter_add(%0, %1, %4; dim=1)
      return %5
    }"""
    graph = parse(text)
    out = passes.run(graph)
    assert "scatter_add" not in str(out)
    x = eager.tensor([[-0.0, 1.0, 2.0, 3.0]] * 3)
    args = [x, eager.tensor([[0], [-1], [2]]), eager.tensor([[-0.0], [2.0], [3.0]])]
    _same(evaluate(graph, args), evaluate(out, args))
    unchecked = text.replace("gather(%0, %1; dim=1)", "gather(%0, %1; dim=0)")
    assert "scatter_add" in optimised(unchecked)


# --- random programs --------------------------------------------------------------------------

UNARY = ("neg", "abs", "relu", "sigmoid", "floor", "clone", "square")
BINARY = ("add", "sub", "mul", "maximum", "minimum")
NUMBERS = (0.0, -0.0, 1.0, -1.0, 2.5, 0, 1)


@st.composite
def programs(draw) -> Graph:
    b = Builder()
    values = [b.input((2, 3), "float32"), b.input((3,), "float32"), b.input((2, 1), "float64")]
    for _ in range(draw(st.integers(1, 14))):
        x = draw(st.sampled_from(values))
        kind = draw(st.integers(0, 8))
        if kind == 0:
            out = b.call(registry[draw(st.sampled_from(UNARY))], [x], {})
        elif kind <= 2:
            fitting = [v for v in values if _broadcast(x.shape, v.shape)]
            y = draw(st.sampled_from([*fitting, *map(scalar, NUMBERS)]))
            pair = draw(st.permutations([x, y]))
            out = b.call(registry[draw(st.sampled_from(BINARY))], pair, {})
        elif kind == 3:
            shape = draw(st.sampled_from([(x.numel,), x.shape, (*x.shape, 1)]))
            out = b.call(registry["reshape"], [x], {"shape": tuple(shape)})
        elif kind == 4:
            dims = tuple(draw(st.permutations(range(len(x.shape)))))
            out = b.call(registry["permute"], [x], {"dims": dims})
        elif kind == 5:
            starts = tuple(draw(st.integers(0, n - 1)) for n in x.shape)
            sizes = tuple(draw(st.integers(1, n - a)) for n, a in zip(x.shape, starts, strict=True))
            ones = (1,) * len(sizes)
            attrs = {"starts": starts, "sizes": sizes, "steps": ones, "drop": ()}
            out = b.call(registry["slice"], [x], attrs)
        elif kind == 6:
            dtype = draw(st.sampled_from(["float16", "float32", "float64"]))
            out = b.call(registry["cast"], [x], {"dtype": dtype})
        elif kind == 7 and x.shape:
            dims = (draw(st.integers(0, len(x.shape) - 1)),)
            keep = draw(st.booleans())
            name = draw(st.sampled_from(["sum", "amax"]))
            out = b.call(registry[name], [x], {"dims": dims, "keepdim": keep})
        else:
            condition = b.call(registry["lt"], [x, scalar(0.5)], {})[0]
            out = b.call(registry["where"], [condition, x, scalar(draw(st.just(1.0)))], {})
        values += out
    return b.build(draw(st.lists(st.sampled_from(values), min_size=1, max_size=4)))


def _broadcast(a, b) -> bool:
    try:
        np.broadcast_shapes(a, b)
    except ValueError:
        return False
    return True


def _inputs(graph: Graph, rng: np.random.Generator) -> list:
    special = [0.0, -0.0, np.nan, np.inf, -np.inf, 1.0]
    arrays = []
    for v in graph.inputs:
        a = rng.standard_normal(v.shape).astype(v.dtype)
        picks = rng.random(v.shape) < 0.3
        a[picks] = rng.choice(special, int(picks.sum()))
        arrays.append(eager.tensor(a))
    return arrays


def _same(before, after) -> None:
    for x, y in zip(before, after, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        a, b = x.numpy(), y.numpy()
        np.testing.assert_array_equal(a, b)  # nan equals nan
        if a.dtype.kind == "f":
            np.testing.assert_array_equal(np.signbit(a[a == 0]), np.signbit(b[b == 0]))


@settings(deadline=None, max_examples=150)
@given(programs(), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("transform", [simplify, cse, dce, passes.run])
def test_passes_keep_every_bit(transform, graph, seed):
    after = verify(transform(graph))
    args = _inputs(graph, np.random.default_rng(seed))
    _same(evaluate(graph, args), evaluate(after, args))
    assert str(parse(str(after))) == str(after)


@settings(deadline=None, max_examples=40)
@given(programs(), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_compiled_programs_agree_with_the_interpreter(graph, seed, threads):
    plan = segments.build(passes.run(graph), compile_segment, threads=threads)
    args = _inputs(graph, np.random.default_rng(seed))
    for x, y in zip(evaluate(graph, args), plan.run(args), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        tolerance = 1e-3 if x.dtype == eager.float16 else 1e-5
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=tolerance, atol=tolerance)


# --- differentiation --------------------------------------------------------------------------

MODEL = """graph(%0: f32[4,3], %1: f32[3,5], %2: f32[5], %3: i64[4,1]) {
  %4: f32[4,5] = matmul(%0, %1)
  %5: f32[4,5] = add(%4, %2)
  %6: f32[4,5] = tanh(%5)
  %7: f32[4,2], %8: f32[4,3] = split(%6; sizes=[2,3], dim=1)
  %9: f64[4,2] = cast(%7; dtype=f64)
  %10: f64[4,2] = mul(%9, %9)
  %11: f64[] = sum(%10; dims=[0,1], keepdim=false)
  %12: f32[4,1] = gather(%8, %3; dim=1)
  %13: f32[4,3] = sub(%8, %12)
  %14: f32[] = amax(%13; dims=[0,1], keepdim=false)
  %15: f64[] = mul(%11, %14)
  return %15, %5
}"""


def _model_inputs() -> list:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(s).astype("f") for s in [(4, 3), (3, 5), (5,)]]
    return [*map(eager.tensor, arrays), eager.tensor([[0], [1], [2], [1]])]


def test_gradients_are_those_of_the_tape():
    graph = parse(MODEL)
    args = _model_inputs()
    seeds = [eager.tensor(2.0, dtype=eager.float64), eager.full((4, 5), 0.5)]
    leaves = [x.detach().requires_grad_() for x in args[:3]]
    outputs = evaluate(graph, [*leaves, args[3]])
    expected = eager.autograd.grad(outputs, leaves, seeds)

    joint, reached = differentiate(graph, [0, 1, 2], [0, 1])
    verify(joint)
    assert reached == [True] * 3
    for candidate in (joint, passes.run(joint)):
        results = evaluate(candidate, [*args, *seeds])
        for g, e in zip(results[2:], expected, strict=True):
            np.testing.assert_allclose(g.numpy(), e.numpy(), rtol=1e-5, atol=1e-6)


def test_partition_computes_the_same_from_saved_values():
    joint, _ = differentiate(parse(MODEL), [0, 1, 2], [0, 1])
    joint = passes.run(joint)
    forward, backward, saved = partition(joint, 4, 2)
    verify(forward), verify(backward)
    args = _model_inputs()
    seeds = [eager.tensor(2.0, dtype=eager.float64), eager.full((4, 5), 0.5)]
    expected = evaluate(joint, [*args, *seeds])
    outputs = evaluate(forward, args)
    values = [args[i] if kind == "input" else outputs[i] for kind, i in saved]
    gradients = evaluate(backward, [*values, *seeds])
    _same(expected, outputs[:2] + gradients)


def test_gradients_stop_at_detach_and_unreached_inputs_are_told():
    graph = parse("""graph(%0: f32[2], %1: f32[2]) {
      %2: f32[2] = detach(%0)
      %3: f32[2] = mul(%2, %1)
      return %3
    }""")
    joint, reached = differentiate(graph, [0, 1], [0])
    assert reached == [False, True]
    assert len(joint.outputs) == 2
