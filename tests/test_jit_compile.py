"""`jit.compile`: results, side effects, guards, fallbacks; one launch for a training step."""

import threading
import warnings

import numpy as np
import pytest
from jit_reference import close

import eager
import jit
from eager import nn, optim

# --- forward functions ------------------------------------------------------------------------


def test_the_first_call_is_eager_the_second_traced_the_third_compiled(compile):
    f = compile(lambda x: (x * 2 + 1).relu().sum())
    x = eager.randn(4, 5)
    expected = (x * 2 + 1).relu().sum()
    for calls in range(1, 6):
        close(f(x), expected)
        stats = f.stats()
        assert stats.calls == calls
        assert stats.traces == (calls > 1)
        assert stats.compiled_calls == max(calls - 2, 0)
    assert f.stats().launches_per_call == 1
    assert f.stats().eager_ops_per_call == 0
    assert f.stats().compile_seconds > 0
    assert "graph(%0: f32[4,5])" in f.graph()


def test_structures_of_arguments_and_results(compile):
    def fn(pair, *, scale, named):
        a, b = pair
        return {"sum": a + b, "rest": [named["c"] * scale, scale, None]}

    f = compile(fn, warmup=0)
    a, b, c = eager.ones(3), eager.arange(3.0), eager.full((2,), 5.0)
    for _ in range(3):
        out = f((a, b), scale=2.0, named={"c": c})
        assert out["sum"].tolist() == [1, 2, 3]
        assert out["rest"][0].tolist() == [10, 10] and out["rest"][1:] == [2.0, None]
    assert f.stats().compiled_calls == 2


def test_results_are_fresh_and_views_are_views(compile):
    def fn(x):
        y = x + 1
        return y, y[0], x, x.T

    f = compile(fn, warmup=0)
    x = eager.zeros(2, 3)
    f(x)
    y, row, same, transposed = f(x)
    again = f(x)[0]
    assert same is x
    row.fill_(9.0)
    assert y[0].tolist() == [9] * 3 and again[0].tolist() == [1] * 3
    transposed.fill_(4.0)
    assert x.tolist() == [[4] * 3] * 2


def test_results_without_computation(compile):
    f = compile(lambda x: (x, 3, eager.tensor([1.0, 2.0])), warmup=0)
    x = eager.ones(2)
    for _ in range(3):
        same, number, constant = f(x)
        assert same is x and number == 3 and constant.tolist() == [1, 2]
        constant.zero_()


def test_strided_arguments(compile):
    f = compile(lambda x, y: x @ y + x.sum(), warmup=0)
    x, y = eager.randn(4, 3).T, eager.randn(8, 6)[::2, 1::2]
    for _ in range(3):
        close(f(x, y), x @ y + x.sum(), 1e-5)
    close(f(x.contiguous(), y), x @ y + x.sum(), 1e-5)
    assert f.stats().traces == 2


@pytest.mark.parametrize("shape", [(0,), (0, 3), ()])
def test_empty_and_scalar_tensors(compile, shape):
    f = compile(lambda x: (x * 2, (x + 1).sum()), warmup=0)
    x = eager.ones(shape)
    for _ in range(3):
        doubled, total = f(x)
        assert doubled.shape == x.shape and total.item() == 2 * x.numel()


# --- guards -----------------------------------------------------------------------------------


def test_a_miss_traces_again(compile):
    f = compile(lambda x, n, mode: x * n if mode == "mul" else x + n, warmup=0)
    x = eager.arange(3.0)
    calls = [
        (x, 2, "mul"), (x, 3, "mul"), (x, 2.0, "mul"), (x, 2, "add"), (eager.ones(4), 2, "mul"),
        (eager.ones(3, dtype=eager.float64), 2, "mul"), (eager.arange(3), 2, "mul"),
    ]  # fmt: skip
    for _ in range(2):
        for a, n, mode in calls:
            expected = a * n if mode == "mul" else a + n
            out = f(a, n, mode)
            assert out.dtype == expected.dtype
            close(out, expected)
    assert f.stats().traces == len(calls)
    assert f.stats().compiled_calls == len(calls)


def test_negative_zero_and_nan_are_values_of_their_own(compile):
    f = compile(lambda x, n: x * n, warmup=0)
    x = eager.ones(1)
    for n in (0.0, -0.0, 0.0, float("nan"), float("nan")):
        out, expected = f(x, n).numpy(), (x * n).numpy()
        np.testing.assert_array_equal(out, expected)
        assert np.signbit(out[0]) == np.signbit(expected[0]) or n != n
    assert f.stats().traces == 3


def test_after_some_misses_calls_stay_eager_with_one_warning(compile):
    f = compile(lambda x, n: x * n, warmup=0, retraces=2)
    x = eager.ones(2)
    for n in range(3):
        f(x, n)
    with pytest.warns(jit.CompileWarning, match=r"args\[1\] was 2 and is now 3") as caught:
        assert f(x, 3).tolist() == [3, 3]
    assert "test_jit_compile.py" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert f(x, 4).tolist() == [4, 4]  # no further warning
    assert f(x, 1).tolist() == [1, 1]
    stats = f.stats()
    assert stats.traces == 3 and stats.compiled_calls == 1 and len(stats.fallbacks) >= 1


def test_globals_and_closures_are_guarded(compile):
    factor = 2.0
    table = {"bias": 1.0}

    def fn(x):
        return helper(x) + table["bias"]

    def helper(x):
        return x * factor

    f = compile(fn, warmup=0)
    x = eager.ones(2)
    assert f(x).tolist() == f(x).tolist() == [3, 3]
    factor = 5.0
    assert f(x).tolist() == [6, 6]
    table["bias"] = 0.0
    assert f(x).tolist() == f(x).tolist() == [5, 5]


def test_a_captured_tensor_that_is_also_an_argument(compile):
    captured = eager.ones(2)
    f = compile(lambda x: x + captured, warmup=0)
    assert f(captured).tolist() == [2, 2]
    assert f(eager.zeros(2)).tolist() == [1, 1]
    assert f(captured).tolist() == [2, 2]


def test_arguments_that_are_one_tensor(compile):
    f = compile(lambda x, y: x * 2 + y, warmup=0)
    a, b = eager.ones(2), eager.zeros(2)
    assert f(a, a).tolist() == [3, 3]
    assert f(a, b).tolist() == [2, 2]
    assert f(b, a).tolist() == [1, 1]
    assert f(a, a).tolist() == [3, 3]


def test_plain_objects_are_watched(compile):
    class Config:
        scale = 1.0

    config = Config()
    config.scale = 2.0
    f = compile(lambda x, c: x * c.scale, warmup=0)
    x = eager.ones(2)
    assert f(x, config).tolist() == f(x, config).tolist() == [2, 2]
    config.scale = 3.0
    assert f(x, config).tolist() == [3, 3]


def test_modules_are_guarded_by_their_state(compile):
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    model.eval()
    f = compile(lambda x: model(x), warmup=0)
    x = eager.randn(5, 3)
    for _ in range(3):
        close(f(x), model(x), 1e-5)
    assert f.stats().compiled_calls == 2
    model[0].weight = nn.Parameter(eager.zeros(4, 3))
    close(f(x), model(x), 1e-5)
    with eager.no_grad():
        model[2].bias.fill_(3.0)
    close(f(x), model(x), 1e-5)
    model[1] = nn.Identity()
    close(f(x), model(x), 1e-5)


def test_evaluating_in_between_needs_no_new_trace(compile):
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    f = compile(lambda x: model(x))
    x = eager.randn(2, 3)
    for _ in range(5):
        model.train()
        f(x)
        f(x)
        model.eval()
        f(x)
    # One program for each mode.
    assert f.stats().traces == 2 and f.stats().compiled_calls == 12
    close(f(x), model(x))


def test_compiled_functions_among_the_globals_do_not_count_as_state(compile):
    inner = compile(lambda x: x * 2)
    scope = {"inner": inner}
    exec("def fn(x): return inner(x) if outer else x", scope)
    scope["outer"] = outer = compile(scope["fn"])
    x = eager.randn(3)
    for _ in range(5):
        inner(x)
        close(outer(x), x * 2)
    assert outer.stats().traces == 1 and outer.stats().compiled_calls == 3


def test_freezing_a_captured_tensor_is_noticed(compile):
    w = eager.ones(2, requires_grad=True)
    f = compile(lambda x: x * w, warmup=0)
    x = eager.ones(2)
    assert f(x).requires_grad and f(x).requires_grad
    w.requires_grad_(False)
    assert not f(x).requires_grad
    w.data = eager.full((4,), 2.0)
    assert f(eager.ones(4)).tolist() == [2] * 4
    w.data = eager.full((1,), 3.0)
    assert f(x).tolist() == [3, 3]


def test_grad_mode_and_default_dtype_are_guarded(compile):
    w = eager.ones(2, requires_grad=True)
    f = compile(lambda x: x * w * 2.0, warmup=0)
    x = eager.ones(2)
    assert f(x).requires_grad
    with eager.no_grad():
        assert not f(x).requires_grad
    assert f(x).requires_grad
    assert f.stats().traces == 2


# --- values -----------------------------------------------------------------------------------


def test_truth_values_are_guarded(compile):
    f = compile(lambda x: x * 2 if bool((x > 0).all()) else x - 1, warmup=0)
    positive, mixed = eager.ones(2), eager.tensor([1.0, -1.0])
    for _ in range(2):
        assert f(positive).tolist() == [2, 2]
        assert f(mixed).tolist() == [0, -2]
    assert f.stats().traces == 2 and f.stats().compiled_calls == 2


def test_a_failed_value_guard_leaves_no_effect(compile):
    state = eager.zeros(())

    def fn(x):
        state.add_(x.sum())
        return x * 2 if bool(state < 10) else x

    f = compile(fn, warmup=0)
    x = eager.ones(3)
    total = 0
    for _ in range(8):
        total += 3
        out = f(x)
        assert state.item() == total
        assert out.tolist() == ([2] * 3 if total < 10 else [1] * 3)
    assert f.stats().traces == 2


def test_reading_a_float_keeps_calls_eager(compile):
    f = compile(lambda x: float(x.sum()), warmup=0)
    with pytest.warns(jit.CompileWarning, match="read by Python"):
        assert f(eager.ones(3)) == 3.0
    assert f(eager.ones(3) * 2) == 6.0
    assert f.stats().compiled_calls == 0


# --- side effects -----------------------------------------------------------------------------


def test_tensors_are_written_in_place(compile):
    state = eager.zeros(3)
    seen = state.numpy()

    def fn(x, out):
        state.add_(x)
        out[1:] = x[1:] * 2
        return state * 1.0

    f = compile(fn, warmup=0)
    x, out = eager.arange(3.0), eager.zeros(3)
    for i in range(1, 4):
        version = state._version
        result = f(x, out)
        assert result.tolist() == seen.tolist() == [0, i, 2 * i]
        assert out.tolist() == [0, 2, 4]
        assert state._version > version
    assert f.stats().compiled_calls == 2


def test_memory_shared_by_arguments_is_noticed(compile):
    def fn(a, b):
        a.add_(1)
        return a + b

    f = compile(fn, warmup=0)
    x = eager.zeros(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jit.CompileWarning)
        for _ in range(2):
            assert f(eager.zeros(2), eager.ones(2)).tolist() == [2, 2]
            x.zero_()
            assert f(x, x).tolist() == [2, 2]
            x.zero_()
            assert f(x, x[:]).tolist() == [2, 2]


def test_strided_tensors_are_written_in_place(compile):
    whole = eager.zeros(3, 4)
    f = compile(lambda x: whole.T.add_(x), warmup=0)
    for i in range(1, 4):
        f(eager.ones(4, 3))
        assert whole.tolist() == [[i] * 4] * 3


def test_random_numbers_continue_the_stream(compile):
    f = compile(lambda x: (eager.rand(3) + x, eager.randn(2, 2)), warmup=0)
    x = eager.zeros(3)

    def draws(fn):
        eager.manual_seed(7)
        return [t.numpy().copy() for _ in range(4) for t in fn(x)]

    for a, b in zip(draws(f._fn), draws(f), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert f.stats().compiled_calls == 3


def test_python_side_effects_keep_calls_eager(compile):
    log = []

    def fn(x):
        log.append(1)
        return x * 2

    f = compile(fn, warmup=0)
    with pytest.warns(jit.CompileWarning, match="Python state"):
        for _ in range(12):
            f(eager.ones(2))
    assert len(log) == 12


def test_exceptions_are_the_eager_ones(compile):
    f = compile(lambda x, y: x @ y, warmup=0)
    f(eager.ones(2, 3), eager.ones(3, 4))
    with pytest.raises(ValueError, match="matmul"):
        f(eager.ones(2, 3), eager.ones(4, 3))
    assert f(eager.ones(2, 3), eager.ones(3, 4)).shape == (2, 4)


def test_an_index_out_of_range_is_an_error_and_updates_nothing(compile):
    w = eager.randn(4, 5, requires_grad=True)
    optimizer = optim.SGD([w], lr=0.1)

    def step(x, y):
        optimizer.zero_grad()
        (x @ w).log_softmax(-1).gather(1, y.unsqueeze(1)).mean().backward()
        optimizer.step()

    f = compile(step, warmup=0)
    x = eager.randn(6, 4)
    for _ in range(2):
        f(x, eager.tensor([0, 1, 2, 3, 4, -5]))
    before = w.detach().clone()
    with pytest.raises(eager.errors.IndexOutOfRange):
        f(x, eager.tensor([0, 1, 2, 3, 4, 5]))
    close(w, before, 0)


# --- cuts, threads, odds and ends -------------------------------------------------------------


def test_opaque_ops_cut_the_graph(compile):
    f = compile(lambda x: ((x * 2).cumsum(0) + 1).exp().argmax(0) + 1, warmup=0)
    x = eager.randn(5, 3)
    for _ in range(3):
        assert f(x).tolist() == f._fn(x).tolist()
    stats = f.stats()
    assert stats.launches_per_call == 3 and stats.eager_ops_per_call == 2
    text = jit.explain(f, x)
    assert "opaque, runs eagerly" in text and "cumsum" in text


def test_fullgraph_says_why_not():
    f = jit.compile(lambda x: x.cumsum(0), fullgraph=True, warmup=0)
    with pytest.raises(jit.CompileError, match="cumsum"):
        f(eager.ones(3))
    g = jit.compile(lambda x: x.sum().item(), fullgraph=True, warmup=0)
    with pytest.raises(jit.CompileError, match="read by Python"):
        g(eager.ones(3))


def test_methods_modules_and_decorator_options(compile):
    class Scaler:
        def __init__(self, scale):
            self.scale = scale

        @jit.compile(warmup=0)
        def __call__(self, x):
            return x * self.scale

    two, three = Scaler(2.0), Scaler(3.0)
    x = eager.ones(2)
    for _ in range(2):
        assert two(x).tolist() == [2, 2] and three(x).tolist() == [3, 3]
    model = compile(nn.Linear(2, 2), warmup=0)
    for _ in range(3):
        close(model(x), model._fn(x))
    assert model.stats().compiled_calls == 2
    assert list(model.parameters())  # attributes are the module's


def test_background_compilation(compile):
    f = compile(lambda x: x * 2 + 1, warmup=0, background=True)
    x = eager.ones(3)
    f(x)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(60)
    assert f(x).tolist() == [3, 3, 3]
    assert f.stats().compiled_calls == 1


def test_calls_from_several_threads(compile):
    f = compile(lambda x: (x * 2).sum(), warmup=0)
    wrong = []

    def work(n):
        totals = [f(eager.full((n,), 1.0)).item() for _ in range(20)]
        wrong.extend(t for t in totals if t != 2 * n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (2, 3, 4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_compiled_functions_nest(compile):
    inner = compile(lambda x: x * 2, warmup=0)
    outer = compile(lambda x: inner(x) + 1, warmup=0)
    x = eager.ones(2)
    for _ in range(3):
        assert outer(x).tolist() == [3, 3]
    assert "mul" in outer.graph() and outer.stats().launches_per_call == 1


def test_explain_says_what_was_captured():
    w = eager.ones(3, requires_grad=True)

    def step(x):
        (x * w).sum().backward()

    text = jit.explain(step, eager.ones(3))
    assert "argument 0" in text and "captured tensor" in text and "gets a .grad" in text
    assert "stays eager" in jit.explain(lambda x: float(x), eager.ones(()))
