"""The tracer: what is logged, how in-place calls become values, what is refused and why."""

import numpy as np
import pytest
from jit_reference import Reference

import eager
from eager.op import push
from jit.compile import Compiled
from jit.graph import evaluate
from jit.tracer import Tracer
from jit.verify import verify


def trace(fn, *args):
    tracer = Tracer([a for a in args if isinstance(a, eager.Tensor)])
    with push(tracer):
        result = fn(*args)
    return tracer, tracer.finish(result), result


def traced(fn, *args):
    tracer, found, result = trace(fn, *args)
    assert not tracer.refused, tracer.refused
    verify(found.graph)
    return found, result


def refusal(fn, *args) -> str:
    tracer, found, _ = trace(fn, *args)
    assert found is None
    return tracer.refused


def names(found) -> list[str]:
    return [n.op.name for n in found.graph.nodes]


def test_a_call_is_logged_while_it_runs():
    x, w = eager.ones(2, 3), eager.ones(3, 4)
    found, result = traced(lambda a: (a @ w + 1.0).relu(), x)
    assert names(found) == ["matmul", "add", "relu"]
    assert result.tolist() == [[4.0] * 4] * 2
    assert found.sources[0].argument == 0
    assert found.sources[1].tensor is w
    assert "test_tracer.py" in found.graph.nodes[0].where
    _same(evaluate(found.graph, [x, w])[0], result)


def _same(a, b):
    np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_numbers_are_weak_constants():
    found, _ = traced(lambda a: a * 2 + 0.5, eager.ones(2, dtype=eager.float16))
    assert [n.inputs[1].weak for n in found.graph.nodes] == [True, True]
    assert found.graph.outputs[0].dtype == "float16"


def test_structures_and_plain_values_are_returned():
    found, _ = traced(lambda a: {"y": [a + 1, "text"], "n": (None, 3)}, eager.ones(2))
    assert [r.value for r in found.results] == [None, "text", None, 3]
    assert "of type object" in refusal(lambda _: object(), eager.ones(2))


def test_results_may_be_inputs_and_views():
    def fn(a):
        y = a * 2
        return a, a[0], y, y.reshape(-1), y.T

    found, _ = traced(fn, eager.ones(2, 3))
    assert [(r.source, r.output, len(r.views)) for r in found.results] == [
        (0, -1, 0), (0, -1, 1), (-1, 0, 0), (-1, 0, 1), (-1, 0, 1),
    ]  # fmt: skip
    assert len(found.graph.outputs) == 1


# --- in place ---------------------------------------------------------------------------------


def test_writes_to_fresh_tensors_leave_no_effect():
    def fn(a):
        y = a * 2
        y.add_(1)
        y *= a
        return y

    x = eager.arange(3.0)
    found, result = traced(fn, x)
    assert not found.effects
    _same(evaluate(found.graph, [x])[0], result)


def test_writes_to_tensors_from_outside_are_effects():
    state = eager.zeros(3)

    def fn(a):
        state.add_(a)
        a.mul_(2)
        return state * 1.0

    x = eager.arange(3.0)
    found, _ = traced(fn, x)
    assert [e.kind for e in found.effects] == ["write", "write"]
    targets = [found.sources[e.target] for e in found.effects]
    assert targets[0].argument == 0 and targets[1].tensor is state
    fresh = eager.arange(3.0)
    outputs = evaluate(found.graph, [fresh if s.argument == 0 else eager.ones(3)
                                     for s in found.sources])  # fmt: skip
    assert outputs[found.effects[1].output].tolist() == [1, 2, 3]
    assert outputs[found.effects[0].output].tolist() == [0, 2, 4]


def test_writes_through_views_reach_the_whole_and_other_views():
    def fn(a):
        y = a * 1.0
        row, column, flat = y[1], y[:, ::2], y.reshape(-1)
        row.fill_(7.0)
        column.add_(10)
        flat[0] = -1.0
        left, right = y.T.split([1, 3])
        right.mul_(2)
        return y, row, flat + 0.5, left * 1.0

    x = eager.arange(12.0).reshape(3, 4)
    found, result = traced(fn, x)
    outputs = evaluate(found.graph, [x])
    _same(outputs[found.results[0].output], result[0])
    _same(outputs[found.results[2].output], result[2])
    _same(outputs[found.results[3].output], result[3])
    assert found.results[1].views and found.results[1].output == found.results[0].output


def test_assignment_by_index_is_a_value():
    def fn(a, b):
        y = a.clone()
        y[1:, 0] = b
        y[..., -1] = 3.0
        return y

    x, b = eager.zeros(3, 4), eager.tensor([5.0, 6.0])
    found, result = traced(fn, x, b)
    _same(evaluate(found.graph, [x, b])[0], result)


def test_detached_aliases_are_the_same_memory():
    p = eager.ones(3, requires_grad=True)

    def fn(a):
        with eager.no_grad():
            p.data.add_(a)
            p.detach().mul_(2)
        return p * 1.0

    found, _ = traced(fn, eager.ones(3))
    assert len(found.sources) == 2
    (effect,) = found.effects
    assert found.sources[effect.target].tensor is not None


def test_writes_to_memory_shared_outside_are_refused():
    whole = eager.zeros(4)
    part = whole[:2]

    def fn(a):
        y = whole + a
        part.add_(1)
        return y

    assert "share" in refusal(fn, eager.ones(4))


def test_a_cast_follows_where_the_target_is_narrower():
    def fn(a, b):
        y = a.clone()
        y.add_(b)
        return y

    x, b = eager.ones(2, dtype=eager.float16), eager.ones(2, dtype=eager.float64)
    found, _ = traced(fn, x, b)
    assert found.graph.outputs[0].dtype == "float16"


def _steps(rng, xs):
    """A random program of views and writes on the tensors `xs`, drawn from `rng`."""
    live = list(xs)
    for _ in range(rng.integers(1, 9)):
        t = live[rng.integers(len(live))]
        kind = rng.integers(0, 9)
        if kind == 0:
            live.append(t * 2 + 1)
        elif kind == 1 and t.ndim:
            n = t.shape[0]
            live.append(t[int(rng.integers(0, n)) :: int(rng.integers(1, 3))])
        elif kind == 2 and t.ndim:
            live.append(t[..., int(rng.integers(0, t.shape[-1]))])
        elif kind == 3:
            live.append(t.reshape(-1))
        elif kind == 4:
            live.append(t.permute(*map(int, rng.permutation(t.ndim))))
        elif kind == 5 and t.ndim and t.shape[0] > 1:
            live += t.split([1, t.shape[0] - 1])
        elif kind == 6:
            t.mul_(0.5)
        elif kind == 7:
            t.add_(live[rng.integers(len(live))].sum())
        elif kind == 8 and t.ndim:
            t[int(rng.integers(0, t.shape[0]))] = float(rng.integers(-3, 3))
    return live


@pytest.mark.parametrize("seed", range(150))
def test_random_writes_through_random_views(seed):
    def inputs():
        return eager.arange(12.0).reshape(3, 4), eager.arange(4.0)

    compiled = Compiled(
        lambda *xs: _steps(np.random.default_rng(seed), xs), warmup=0, compiler=Reference
    )
    for _ in range(3):
        expected_inputs, given = inputs(), inputs()
        expected = _steps(np.random.default_rng(seed), expected_inputs)
        for a, b in zip(compiled(*given), expected, strict=True):
            _same(a, b)
        for a, b in zip(given, expected_inputs, strict=True):
            _same(a, b)
    assert compiled.stats().compiled_calls == 2, compiled.stats()


# --- data from and to Python ------------------------------------------------------------------


def test_lists_of_numbers_are_constants_and_arrays_are_refused():
    found, _ = traced(lambda a: a * eager.tensor([1.0, 2.0]), eager.ones(2))
    assert found.graph.nodes[0].inputs[1].is_constant
    reason = refusal(lambda a: a * eager.tensor(np.ones(2, "f")), eager.ones(2))
    assert "made from data" in reason and "test_tracer.py:" in reason


def test_reading_data_is_refused_with_the_place():
    reason = refusal(lambda a: float((a * 2).sum()), eager.ones(2))
    assert "read by Python" in reason and "test_tracer.py:" in reason
    assert "read by Python" in refusal(lambda a: (a * 2).numpy().sum(), eager.ones(2))


def test_truth_values_and_integers_become_guards():
    def fn(a, n):
        return a * 2 if (a > 0).all() else a * int(n)

    found, _ = traced(fn, eager.ones(2), eager.tensor(3))
    (guard,) = found.guards
    assert guard.value is True and "test_tracer.py" in guard.where


def test_shapes_that_depend_on_data_are_refused():
    reason = refusal(lambda a: a.nonzero() * 2, eager.ones(3))
    assert "nonzero: the shape of the result depends on data" in reason
    assert "depends on data" in refusal(lambda a: a[a > 0] + 1, eager.ones(3))


def test_constants_may_be_read():
    found, _ = traced(lambda a: a * (eager.tensor(3.0) * 2).item(), eager.ones(2))
    assert found.graph.outputs[0].dtype == "float32" and not found.guards


def test_errors_are_the_eager_ones():
    with pytest.raises(ValueError, match="matmul"):
        trace(lambda a: a @ eager.ones(5, 5), eager.ones(2, 3))


# --- gradients --------------------------------------------------------------------------------


def test_backward_is_logged_and_gives_grad_effects():
    w = eager.ones(3, requires_grad=True)

    def fn(a):
        loss = (w * a).sum()
        loss.backward()
        return loss

    x = eager.arange(3.0)
    found, _ = traced(fn, x)
    (effect,) = found.effects
    assert effect.kind == "grad" and found.leaves[effect.target].tensor is w
    assert found.had_grad == [False]
    assert not found.differentiable
    inputs = [x if s.argument == 0 else w.detach() for s in found.sources]
    assert evaluate(found.graph, inputs)[effect.output].tolist() == [0, 1, 2]


def test_accumulation_reads_the_grad_there_is():
    w = eager.ones(3, requires_grad=True)

    def fn(a):
        (w * a).sum().backward()

    fn(eager.ones(3))
    found, _ = traced(fn, eager.ones(3))
    assert found.had_grad == [True]
    (effect,) = found.effects
    assert effect.kind == "write"
    assert found.sources[effect.target].leaf.tensor is w


def test_clearing_grads_is_an_effect():
    w = eager.ones(3, requires_grad=True)
    w.grad = eager.ones(3)

    def fn(a):
        w.grad = None
        return a * w

    found, _ = traced(fn, eager.ones(3))
    assert [(e.kind, e.output) for e in found.effects] == [("grad", -1)]
    assert found.had_grad == [None]


def test_backward_through_an_older_tape_is_refused():
    w = eager.ones(3, requires_grad=True)
    y = (w * 2).exp()

    assert "made outside" in refusal(lambda a: (y * a).sum().backward(), eager.ones(3))


def test_results_that_need_a_gradient_are_told():
    w = eager.ones(3, requires_grad=True)
    found, _ = traced(lambda a: (a * w, a + 1), eager.ones(3))
    assert found.differentiable == [0]
    assert found.requires == [False, True]


def test_leaves_made_inside_need_no_effect():
    def fn(a):
        x = a.detach().requires_grad_()
        (x * x).sum().backward()
        return x.grad

    found, _ = traced(fn, eager.arange(3.0))
    assert not found.effects and not found.leaves
    reason = refusal(lambda a: a.detach().requires_grad_(), eager.ones(2))
    assert "new leaf" in reason


def test_no_grad_regions_are_constants_for_differentiation():
    w = eager.ones(3, requires_grad=True)

    def fn(a):
        with eager.no_grad():
            scale = w.sum()
        return a * w / scale

    found, _ = traced(fn, eager.ones(3))
    assert names(found).count("detach") == 1


def test_copies_that_the_tape_makes_are_not_taken_for_tensors_from_outside():
    """An in-place product keeps a copy of what it overwrites: its data differ at every call."""
    w = eager.ones(3, requires_grad=True)

    def fn(a):
        x = a.clone()
        x.mul_(w)
        x.sum().backward()

    assert "without calling an op" in refusal(fn, eager.ones(3))
