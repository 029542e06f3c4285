"""The graph IR: text form, verifier, utilities, reference interpreter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eager
from eager.op import registry
from jit.graph import Builder, Graph, Node, Value, array, evaluate, scalar, topological
from jit.parser import parse
from jit.verify import VerifyError, verify

LINEAR = """graph(%0: f32[4,8], %1: f32[8,3], %2: f32[3]) {
  %3: f32[4,3] = matmul(%0, %1)
  %4: f32[4,3] = add(%3, %2)
  %5: f32[4,3] = mul(%4, 0.5)
  %6: f32[4] = sum(%5; dims=[1], keepdim=false)
  %7: f64[4] = cast(%6; dtype=f64)
  return %7, %4
}"""


def test_text_round_trip():
    graph = parse(LINEAR)
    assert str(graph) == LINEAR
    assert str(verify(graph)) == LINEAR
    assert str(graph.copy()) == LINEAR


def test_white_space_and_comments_do_not_matter():
    text = LINEAR.replace("\n", " ").replace("return", "# the end, %9\n return")
    assert str(parse(text)) == LINEAR


def test_constants_round_trip():
    text = """graph(%0: f32[2]) {
  %1: f32[2] = add(%0, -1.5e-07)
  %2: f32[2] = add(%1, nan)
  %3: f32[2] = add(%2, -inf)
  %4: f32[2] = add(%3, f32[2](0.25, -0.0))
  %5: bool[2] = eq(%4, f32[](2.5))
  %6: bool[2] = logical_and(%5, true)
  %7: f32[2] = mul(%4, 1.0:f64)
  %8: f32[2] = mul(%7, 3)
  return %6, 3, %8
}"""
    graph = parse(text)
    assert str(graph) == text
    assert graph.nodes[3].inputs[1].constant.dtype == np.float32


@given(
    st.one_of(
        st.integers(-(2**62), 2**62), st.booleans(), st.floats(allow_nan=False), st.just(np.inf)
    )
)
def test_every_number_survives_the_text(number):
    graph = parse(str(Graph([], [], [scalar(number)])))
    (v,) = graph.outputs
    assert (type(v.constant), repr(v.constant)) == (type(number), repr(number))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int8", "uint8", "bool"])
def test_arrays_of_every_kind_survive_the_text(dtype):
    from jit.graph import numpy_dtype

    data = np.array([0, 1, 1], numpy_dtype(dtype))
    text = str(Graph([], [], [array(data)]))
    (v,) = parse(text).outputs
    assert v.constant.dtype == data.dtype and v.constant.tolist() == data.tolist()
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("graph(%0: f32[2]) { %0: f32[2] = neg(%0) return }", "new name"),
        ("graph() { return %1 }", "%1 is used before its definition"),
        ("graph() { return", "the end"),
        ("graph() { return } x", "expected the end"),
        ("graph() {\n\n %1: f3[] = neg() return }", "line 3: unknown dtype 'f3'"),
        ("graph() { %1: f32[] = nothing() return }", "no op is named 'nothing'"),
        ("graph() { return f32[2](1.0) }", "1 numbers for a constant"),
        ("graph() { return 1.2.3 }", "expected a number"),
        ("graph(%0: f32[1.5]) { return }", "expected an integer"),
    ],
)
def test_errors_name_the_line(text, message):
    with pytest.raises(ValueError, match="graph text, line") as caught:
        parse(text)
    assert message in str(caught.value)


def _broken(change):
    graph = parse(LINEAR)
    change(graph)
    with pytest.raises(VerifyError) as caught:
        verify(graph)
    return str(caught.value)


def test_verifier_finds_use_before_definition():
    assert "used but not defined" in _broken(lambda g: g.nodes.reverse())
    assert "used but not defined" in _broken(lambda g: g.outputs.append(Value(99, (), "float32")))


def test_verifier_finds_double_definitions():
    assert "defined twice" in _broken(lambda g: g.nodes.append(g.nodes[0]))

    def same_id(graph):
        graph.nodes[1].output.id = 0

    assert "defined twice" in _broken(same_id)


def test_verifier_finds_wrong_types():
    def wrong_shape(graph):
        graph.nodes[0].output.shape = (4, 4)

    def wrong_dtype(graph):
        graph.nodes[2].output.dtype = "float64"

    assert "infers %3: f32[4,3]" in _broken(wrong_shape)
    assert "infers %5: f32[4,3]" in _broken(wrong_dtype)


def test_verifier_finds_bad_calls():
    assert "takes 2 inputs" in _broken(lambda g: g.nodes[0].inputs.pop())
    assert "expected ['dims', 'keepdim']" in _broken(lambda g: g.nodes[3].attrs.pop("dims"))
    assert "not of type ints" in _broken(lambda g: g.nodes[3].attrs.update(dims=[1]))
    assert "not of type bool" in _broken(lambda g: g.nodes[3].attrs.update(keepdim=0))

    def refused(graph):
        graph.nodes[0].inputs.reverse()

    assert "refuses these operands" in _broken(refused)


def test_topological_order_puts_operands_first():
    graph = parse(LINEAR)
    order = topological(graph.nodes[::-1])
    verify(Graph(graph.inputs, order, graph.outputs))


def test_topological_order_refuses_cycles():
    a, b = Value(0, (), "float32"), Value(1, (), "float32")
    neg = registry["neg"]
    with pytest.raises(ValueError, match="cycle"):
        topological([Node(neg, [a], {}, [b]), Node(neg, [b], {}, [a])])


def test_users_and_producers():
    graph = parse(LINEAR)
    users = graph.users()
    product, biased = graph.nodes[0], graph.nodes[1]
    assert users[product.output] == [biased]
    assert users[graph.outputs[0]] == []
    assert graph.producers()[biased.output] is biased
    assert graph.inputs[0] not in graph.producers()


def test_builder_infers_types_and_keeps_locations():
    b = Builder()
    x = b.input((2, 1), "float32")
    b.where = "model.py:3"
    (y,) = b.call(registry["add"], [x, array(np.zeros(3, np.float64))], {})
    assert (y.shape, y.dtype) == ((2, 3), "float64")
    graph = b.build([y])
    assert str(graph).count("# model.py:3") == 1
    assert graph.copy().nodes[0].where == "model.py:3"


def test_evaluate_agrees_with_numpy():
    rng = np.random.default_rng(0)
    x, w, c = (rng.standard_normal(s).astype("f") for s in [(4, 8), (8, 3), (3,)])
    outputs = evaluate(parse(LINEAR), [eager.tensor(a) for a in (x, w, c)])
    np.testing.assert_allclose(outputs[1].numpy(), x @ w + c, rtol=1e-5)
    np.testing.assert_allclose(outputs[0].numpy(), (x @ w + c).sum(1) * 0.5, rtol=1e-5)
    assert outputs[0].dtype == eager.float64


def test_evaluate_handles_several_outputs_and_constants():
    graph = parse("""graph(%0: f32[5]) {
      %1: f32[2], %2: f32[3] = split(%0; sizes=[2,3], dim=0)
      return %2, %1, %0, 2.5, i64[2](1, 2)
    }""")
    x = eager.arange(5.0)
    tail, head, same, number, pair = evaluate(graph, [x])
    assert tail.tolist() == [2, 3, 4] and head.tolist() == [0, 1] and same is x
    assert number.item() == 2.5 and pair.tolist() == [1, 2]
    with pytest.raises(ValueError, match="1 inputs, 0 were given"):
        evaluate(graph, [])
