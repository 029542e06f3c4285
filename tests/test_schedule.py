"""Tasks, barriers and memory: what schedules promise, and that breaking it shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program_runner import run

from eager.layout import Layout
from jit.fusion import build_plan, build_program, compile_segment
from jit.fusion.conflicts import Access, grain_of
from jit.fusion.memory import plan_memory
from jit.fusion.program import assemble, without_barrier
from jit.fusion.schedule import describe_schedule, make_schedule
from jit.fusion.tile import Buffer
from jit.parser import parse

MLP = """graph(%0: f32[64,20], %1: f32[20,48], %2: f32[48], %3: f32[48,10], %4: f32[64,10]) {
    %5: f32[64,48] = matmul(%0, %1)
    %6: f32[64,48] = add(%5, %2)
    %7: f32[64,48] = tanh(%6)
    %8: f32[64,10] = matmul(%7, %3)
    %9: f32[64,10] = sub(%8, %4)
    %10: f32[64,10] = mul(%9, %9)
    %11: f32[] = sum(%10; dims=[0,1], keepdim=false)
    %12: f32[64,10] = mul(%9, 2.0)
    %13: f32[48,64] = permute(%7; dims=[1,0])
    %14: f32[48,10] = matmul(%13, %12)
    %15: f32[10,48] = permute(%3; dims=[1,0])
    %16: f32[64,48] = matmul(%12, %15)
    %17: f32[64,48] = mul(%7, %7)
    %18: f32[64,48] = sub(1.0, %17)
    %19: f32[64,48] = mul(%16, %18)
    %20: f32[20,64] = permute(%0; dims=[1,0])
    %21: f32[20,48] = matmul(%20, %19)
    %22: f32[48] = sum(%19; dims=[0], keepdim=false)
    %23: f32[20,48] = mul(%21, 0.1)
    %24: f32[20,48] = sub(%1, %23)
    %25: f32[48] = mul(%22, 0.1)
    %26: f32[48] = sub(%2, %25)
    %27: f32[48,10] = mul(%14, 0.1)
    %28: f32[48,10] = sub(%3, %27)
    return %11, %24, %26, %28 }"""
WRITES = {1: 1, 2: 2, 3: 3}

# Forward and backward go by rows without a barrier; one stands before the sums over rows.
GOLDEN = """\
epoch 0, worker 0:
  0: gemm 1x(64x48x20) float32 [0:32] of dim 1
  1: map 64x48 [0:32] of dim 0
  2: gemm 1x(64x10x48) float32 [0:32] of dim 1
  4: map 64x10 [0:32] of dim 0
  6: gemm 1x(64x48x10) float32 [0:32] of dim 1
  7: map 64x48 [0:32] of dim 0
epoch 0, worker 1:
  0: gemm 1x(64x48x20) float32 [32:64] of dim 1
  1: map 64x48 [32:64] of dim 0
  2: gemm 1x(64x10x48) float32 [32:64] of dim 1
  4: map 64x10 [32:64] of dim 0
  6: gemm 1x(64x48x10) float32 [32:64] of dim 1
  7: map 64x48 [32:64] of dim 0
--- barrier ---
epoch 1, worker 0:
  3: reduce 64x10 keeping 0
  5: gemm 1x(48x10x64) float32 [0:24] of dim 1
  8: gemm 1x(20x48x64) float32 [0:24] of dim 2
  9: reduce 48x64 keeping 1 [0:24] of dim 0
  10: map 20x48 [0:24] of dim 1
  11: map 48x10 [0:24] of dim 0
epoch 1, worker 1:
  5: gemm 1x(48x10x64) float32 [24:48] of dim 1
  8: gemm 1x(20x48x64) float32 [24:48] of dim 2
  9: reduce 48x64 keeping 1 [24:48] of dim 0
  10: map 20x48 [24:48] of dim 1
  11: map 48x10 [24:48] of dim 0"""


def arrays():
    rng = np.random.default_rng(0)
    shapes = [(64, 20), (20, 48), (48,), (48, 10), (64, 10)]
    return [rng.normal(size=s).astype(np.float32) * np.float32(0.3) for s in shapes]


def reference(x, w1, b1, w2, y):
    h = np.tanh(x @ w1 + b1)
    e = h @ w2 - y
    d = 2 * e @ w2.T * (1 - h * h)
    lr = np.float32(0.1)
    return (e * e).sum(), w1 - lr * x.T @ d, b1 - lr * d.sum(0), w2 - lr * h.T @ (2 * e)


def close(outputs, expected) -> bool:
    return all(
        np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(outputs, expected, strict=True)
    )


def test_golden_schedule_of_a_training_step():
    plan = build_plan(parse(MLP), WRITES)
    schedule = make_schedule(plan, 2)
    assert describe_schedule(plan, schedule) == GOLDEN


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("order", ["forward", "backward"])
def test_values_do_not_depend_on_the_order_of_workers(workers, order):
    inputs = arrays()
    expected = reference(*inputs)
    program = build_program(parse(MLP), workers=workers, writes=WRITES)
    outputs, _ = run(program, inputs, order=order)
    assert close(outputs, expected)
    assert program.epochs == 1 if workers == 1 else program.epochs <= 3


@pytest.mark.parametrize("workers", [2, 3])
def test_leaving_out_a_barrier_is_noticed(workers):
    plan = build_plan(parse(MLP), WRITES)
    schedule = make_schedule(plan, workers)
    expected = reference(*arrays())
    assert schedule.epochs > 1
    for barrier in range(schedule.epochs - 1):
        program = assemble(plan, without_barrier(schedule, barrier))
        results = [run(program, arrays(), order=o)[0] for o in ("forward", "backward")]
        assert not all(close(outputs, expected) for outputs in results)


def test_a_chain_of_row_parallel_stages_needs_no_barrier():
    lines, last = [], 0
    for step in range(6):
        product, result = 2 * step + 2, 2 * step + 3
        lines.append(f"%{product}: f32[32,16] = matmul(%{last}, %1)")
        lines.append(f"%{result}: f32[32,16] = tanh(%{product})")
        last = result
    text = f"graph(%0: f32[32,16], %1: f32[16,16]) {{ {' '.join(lines)} return %{last} }}"
    program = build_program(parse(text), workers=4)
    assert program.epochs == 1
    assert len(program.schedule.tasks) == 4 * 12


def test_tall_products_are_cut_like_their_neighbours():
    """[time * batch] rows are cut along the batch, as the rest is."""
    text = """graph(%0: f32[8,64,16], %1: f32[16,16], %2: f32[64,16]) {
        %3: f32[8,64,16] = permute(%0; dims=[0,1,2]) %4: f32[8,64,16] = neg(%3)
        %5: f32[512,16] = reshape(%4; shape=[512,16]) %6: f32[512,16] = matmul(%5, %1)
        %7: f32[8,64,16] = reshape(%6; shape=[8,64,16])
        %8: f32[1,64,16] = slice(%7; starts=[7,0,0], sizes=[1,64,16], steps=[1,1,1], drop=[])
        %9: f32[64,16] = reshape(%8; shape=[64,16]) %10: f32[64,16] = add(%9, %2)
        %11: f32[64,16] = matmul(%10, %1) %12: f32[64,16] = tanh(%11)
        %13: f32[64,16] = matmul(%12, %1) %14: f32[64,16] = tanh(%13) return %14 }"""
    program = build_program(parse(text), workers=2)
    assert program.epochs == 1
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=s).astype(np.float32) for s in [(8, 64, 16), (16, 16), (64, 16)])
    expected = np.tanh(np.tanh(((-x @ w)[7] + b) @ w) @ w)
    np.testing.assert_allclose(run(program, [x, w, b])[0][0], expected, rtol=1e-3, atol=1e-4)


def test_memory_is_reused_where_no_task_can_tell():
    """Rows of a long chain stay with their worker, so two buffers serve all intermediates."""
    lines = [
        f"%{step + 2}: f32[32,16] = matmul(%{step + 1 if step else 0}, %1)" for step in range(8)
    ]
    text = f"graph(%0: f32[32,16], %1: f32[16,16]) {{ {' '.join(lines)} return %9 }}"
    program = build_program(parse(text), workers=2)
    assert program.epochs == 1
    assert program.arena <= 2 * 32 * 16 * 4


def test_memory_that_workers_share_is_reused_only_behind_a_barrier():
    plan = build_plan(parse(MLP), WRITES)
    schedule = make_schedule(plan, 2)
    offsets, _ = plan_memory(plan, schedule)
    for a in offsets:
        for b in offsets:
            overlap = offsets[a] < offsets[b] + plan.buffers[b].nbytes and (
                offsets[b] < offsets[a] + plan.buffers[a].nbytes
            )
            if a >= b or not overlap:
                continue
            (first, last, *_), (first_b, last_b, *_) = schedule.span[a], schedule.span[b]
            behind_barrier = last < first_b or last_b < first
            private = schedule.owners.get(a) == schedule.owners.get(b) is not None
            assert behind_barrier or private


def test_granules():
    buffer = Buffer(1, "float32", 64 * 48, "arena")
    rows = (Layout((64, 48), (48, 1), 0), ())
    columns = (Layout((64, 12), (48, 1), 12), ())
    assert grain_of(buffer, [rows]) == 8
    assert grain_of(buffer, [rows, columns]) == 4
    access = Access(1, columns[0], (), 4)
    assert (access.shape, access.strides, access.offset) == ([64, 3], [12, 1], 3)
    cells = np.zeros(64 * 12, np.int16)
    access.of(cells)[...] = 1
    assert cells.reshape(64, 12)[:, 3:6].all() and cells.sum() == 64 * 3


# --- random programs ---------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "tanh", "permute", "matmul", "rows", "scatter", "roll"]),
        st.integers(0, 99), st.integers(0, 99), st.integers(0, 8),
    ),
    min_size=2, max_size=12,
)  # fmt: skip


def program_text(steps, results) -> str:
    """A graph on 12 x 12 matrices whose ops read each other's results in awkward ways."""
    lines, square, count = [], [0, 1], 2

    def value(shape: str, call: str) -> int:
        nonlocal count
        lines.append(f"%{count}: f32[{shape}] = {call}")
        count += 1
        return count - 1

    for kind, a, b, at in steps:
        x, y = square[a % len(square)], square[b % len(square)]
        match kind:
            case "add":
                new = value("12,12", f"add(%{x}, %{y})")
            case "tanh":
                new = value("12,12", f"tanh(%{x})")
            case "permute":
                new = value("12,12", f"permute(%{x}; dims=[1,0])")
            case "matmul":
                new = value("12,12", f"tanh(%{value('12,12', f'matmul(%{x}, %{y})')})")
            case "rows":
                sums = value("12", f"sum(%{x}; dims=[1], keepdim=false)")
                new = value("12,12", f"tanh(%{value('12,12', f'mul(%{y}, %{sums})')})")
            case "scatter":
                place = "starts=[1,0], sizes=[4,12], steps=[2,1]"
                part = value("4,12", f"slice(%{x}; {place}, drop=[])")
                place = f"starts=[{at},0], sizes=[4,12], steps=[1,1]"
                new = value("12,12", f"slice_scatter(%{y}, %{part}; {place})")
            case _:
                top = value(
                    "7,12", f"slice(%{x}; starts=[0,0], sizes=[7,12], steps=[1,1], drop=[])"
                )
                low = value(
                    "5,12", f"slice(%{y}; starts=[2,0], sizes=[5,12], steps=[2,1], drop=[])"
                )
                new = value("12,12", f"cat(%{low}, %{top}; dim=0)")
        square.append(new)
    returned = ", ".join(f"%{square[r % len(square)]}" for r in results)
    return f"graph(%0: f32[12,12], %1: f32[12,12]) {{ {' '.join(lines)} return {returned} }}"


@settings(max_examples=40, deadline=None)
@given(STEPS, st.lists(st.integers(2, 99), min_size=1, max_size=3), st.sampled_from([2, 3]))
def test_random_programs_give_the_same_with_any_schedule(steps, results, workers):
    text = program_text(steps, results)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(12, 12)).astype(np.float32) * np.float32(0.3) for _ in range(2))
    expected, _ = run(build_program(parse(text), workers=1), [x.copy(), y.copy()])
    target = {0: 0}
    for order in ("forward", "backward"):
        program = build_program(parse(text), workers=workers)
        inputs = [x.copy(), y.copy()]
        outputs, _ = run(program, inputs, order=order)
        assert all(np.allclose(a, b, 1e-4, 1e-4) for a, b in zip(outputs, expected, strict=True))
        assert np.array_equal(inputs, [x, y])
        # the first result overwrites the first input
        inputs = [x.copy(), y.copy()]
        program = build_program(parse(text), workers=workers, writes=target)
        outputs, _ = run(program, inputs, order=order)
        assert np.allclose(inputs[0], expected[0], 1e-4, 1e-4)
        assert all(np.allclose(a, b, 1e-4, 1e-4) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize(("size", "workers"), [(16, 1), (1024, 2)])
def test_a_short_program_runs_on_one_worker(size, workers):
    text = f"f32[{size},{size}]"
    graph = parse(f"graph(%0: {text}, %1: {text}) {{ %2: {text} = matmul(%0, %1) return %2 }}")
    executable = compile_segment(graph, threads=2)
    assert executable.stats.workers == workers
