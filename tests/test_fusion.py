"""From graphs to stages: what is fused, what is stored, and that the values are right."""

from math import prod

import numpy as np
import pytest
from program_runner import run

from eager.layout import Layout
from jit.fusion import build_plan, build_program
from jit.fusion.copies import compose
from jit.fusion.overlap import layouts_overlap
from jit.fusion.tile import Gemm, Map, Reduce, describe_plan
from jit.parser import parse


def kinds(plan) -> list[str]:
    return [type(s).__name__ for s in plan.stages]


def plan_of(text: str, writes=None):
    return build_plan(parse(text), writes)


def values(text: str, *inputs, writes=None, workers=2, order="forward"):
    program = build_program(parse(text), workers=workers, writes=writes)
    outputs, flag = run(program, inputs, order=order)
    assert flag == 0
    return outputs


def floats(*shape: int, seed: int = 0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- what is fused -----------------------------------------------------------------------------


def test_elementwise_chain_is_one_stage():
    plan = plan_of("""graph(%0: f32[4,6], %1: f32[6]) {
        %2: f32[4,6] = add(%0, %1) %3: f32[4,6] = tanh(%2) %4: f32[4,6] = mul(%3, %0)
        return %4 }""")
    assert kinds(plan) == ["Map"]
    assert len(plan.stages[0].loads) == 2  # %0 is read once


def test_views_cost_nothing():
    plan = plan_of("""graph(%0: f32[4,6]) {
        %1: f32[6,4] = permute(%0; dims=[1,0])
        %2: f32[2,4] = slice(%1; starts=[1,0], sizes=[2,4], steps=[3,1], drop=[])
        %3: f32[2,4] = flip(%2; dims=[1])
        %4: f32[2,4] = neg(%3) return %4 }""")
    assert kinds(plan) == ["Map"]
    (load,) = plan.stages[0].loads
    assert load.layout == Layout((2, 4), (3, -6), 19)


def test_reshape_that_is_no_view_copies():
    text = """graph(%0: f32[4,6]) {
        %1: f32[6,4] = permute(%0; dims=[1,0]) %2: f32[24] = reshape(%1; shape=[24])
        %3: f32[24] = neg(%2) return %3 }"""
    assert kinds(plan_of(text)) == ["Map", "Map"]
    x = floats(4, 6)
    np.testing.assert_array_equal(values(text, x)[0], -x.T.reshape(24))


def test_producers_go_into_reductions_and_maps_behind_them():
    plan = plan_of("""graph(%0: f32[4,6]) {
        %1: f32[4,6] = mul(%0, %0) %2: f32[4] = sum(%1; dims=[1], keepdim=false)
        %3: f32[4] = sqrt(%2) return %3 }""")
    assert kinds(plan) == ["Reduce"]
    assert plan.stages[0].stores[0].value.fn == "sqrt"


def test_reductions_of_one_space_share_a_pass():
    plan = plan_of("""graph(%0: f32[4,6]) {
        %1: f32[4,6] = mul(%0, %0) %2: f32[4] = sum(%1; dims=[1], keepdim=false)
        %3: f32[4] = sum(%0; dims=[1], keepdim=false) %4: f32[4] = add(%2, %3)
        return %4 }""")
    assert kinds(plan) == ["Reduce"]
    assert len(plan.stages[0].folds) == 2 and len(plan.stages[0].loads) == 1


def test_cheap_values_are_computed_again_and_expensive_ones_stored():
    text = """graph(%0: f32[4], %1: f32[8,4]) {{
        %2: f32[4] = {}(%0) %3: f32[8,4] = add(%1, %2) return %3 }}"""
    assert kinds(plan_of(text.format("neg"))) == ["Map"]
    assert kinds(plan_of(text.format("tanh"))) == ["Map", "Map"]


def test_pieces_of_a_value_are_not_computed_twice():
    """A value that is only read in disjoint parts is fused into each."""
    plan = plan_of("""graph(%0: f32[4,8]) {
        %1: f32[4,8] = exp(%0) %2: f32[4,4], %3: f32[4,4] = split(%1; sizes=[4,4], dim=1)
        %4: f32[4,4] = mul(%2, %3) return %4 }""")
    assert kinds(plan) == ["Map"]
    assert [x.layout.offset for x in plan.stages[0].loads] == [0, 4]


def test_concatenated_values_are_written_in_place():
    text = """graph(%0: f32[4,3], %1: f32[4,5], %2: f32[5,2]) {
        %3: f32[4,3] = exp(%0) %4: f32[4,2] = matmul(%1, %2)
        %5: f32[4,5] = cat(%3, %4; dim=1) return %5 }"""
    plan = plan_of(text)
    assert sorted(kinds(plan)) == ["Gemm", "Map"]
    assert len({b for s in plan.stages for b in [getattr(s, "c", None)] if b}) == 1
    a, b, c = floats(4, 3), floats(4, 5), floats(5, 2)
    np.testing.assert_allclose(
        values(text, a, b, c)[0], np.concatenate([np.exp(a), b @ c], 1), rtol=1e-5
    )


def test_later_regions_overwrite_earlier_ones():
    text = """graph(%0: f32[4,6], %1: f32[2,6]) {
        %2: f32[4,6] = neg(%0)
        %3: f32[4,6] = slice_scatter(%2, %1; starts=[1,0], sizes=[2,6], steps=[2,1])
        return %3 }"""
    x, y = floats(4, 6), floats(2, 6, seed=1)
    expected = -x
    expected[1::2] = y
    for order in ("forward", "backward"):
        np.testing.assert_array_equal(values(text, x, y, order=order)[0], expected)


def test_a_scatter_into_an_input_leaves_the_input_alone():
    text = """graph(%0: f32[3,4], %1: f32[2,4]) {
        %2: f32[3,4] = slice_scatter(%0, %1; starts=[0,0], sizes=[2,4], steps=[1,1])
        %3: f32[3,4] = slice_scatter(%0, %1; starts=[1,0], sizes=[2,4], steps=[1,1])
        %4: f32[3,4] = add(%2, %3) return %4 }"""
    x, y = floats(3, 4), floats(2, 4, seed=1)
    old = x.copy()
    (total,) = values(text, x, y)
    np.testing.assert_array_equal(x, old)
    np.testing.assert_array_equal(total, [y[0] + x[0], y[1] + y[0], x[2] + y[1]])


def test_steps_of_a_sequence_lie_in_their_stack():
    """What is stacked is computed there, read there, and its products become one."""
    text = """graph(%0: f32[4,8], %1: f32[4,8], %2: f32[4,6], %3: f32[4,6]) {
        %4: f32[4,8] = tanh(%0) %5: f32[4,8] = tanh(%1) %6: f32[8,8] = cat(%4, %5; dim=0)
        %7: f32[4,6] = exp(%2) %8: f32[4,6] = exp(%3) %9: f32[8,6] = cat(%7, %8; dim=0)
        %10: f32[8,4] = permute(%4; dims=[1,0]) %11: f32[8,6] = matmul(%10, %7)
        %12: f32[8,4] = permute(%5; dims=[1,0]) %13: f32[8,6] = matmul(%12, %8)
        %14: f32[8,6] = add(%11, %13) return %6, %9, %14 }"""
    plan = plan_of(text)
    assert sorted(kinds(plan)) == ["Gemm", "Map", "Map"]
    assert [s.k for s in plan.stages if isinstance(s, Gemm)] == [8]
    a, b, c, d = floats(4, 8), floats(4, 8, seed=1), floats(4, 6, seed=2), floats(4, 6, seed=3)
    total = values(text, a, b, c, d)[2]
    expected = np.tanh(a).T @ np.exp(c) + np.tanh(b).T @ np.exp(d)
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-5)


def test_sums_of_transposed_products_accumulate():
    text = """graph(%0: f32[4,3], %1: f32[3,5], %2: f32[4,3], %3: f32[3,5], %4: f32[5,4]) {
        %5: f32[4,5] = matmul(%0, %1) %6: f32[4,5] = matmul(%2, %3)
        %7: f32[5,4] = permute(%5; dims=[1,0]) %8: f32[5,4] = permute(%6; dims=[1,0])
        %9: f32[5,4] = add(%7, %8) %10: f32[5,4] = add(%9, %4) return %10 }"""
    assert kinds(plan_of(text)) == ["Gemm", "Gemm", "Map"]
    a, b, c, d, e = (floats(*s, seed=i) for i, s in enumerate(
        [(4, 3), (3, 5), (4, 3), (3, 5), (5, 4)]))  # fmt: skip
    np.testing.assert_allclose(
        values(text, a, b, c, d, e)[0], (a @ b + c @ d).T + e, rtol=1e-4, atol=1e-5
    )


def test_layouts_of_moved_tensors():
    rng = np.random.default_rng(0)
    whole = np.arange(4 * 6 * 5)
    for _ in range(300):
        # a tensor of this shape lies at `place` in `whole`
        place = Layout.packed((4, 6, 5)).permute(rng.permutation(3).tolist())
        shape = tuple(int(rng.integers(1, n + 1)) for n in place.shape)
        place = place.slice([int(rng.integers(0, n - m + 1)) for n, m in
                             zip(place.shape, shape, strict=True)], shape, (1, 1, 1))  # fmt: skip
        tensor = picked(whole, place)
        order = rng.permutation(3).tolist()
        view = Layout.packed(shape).flip(rng.permutation(3)[:1].tolist()).permute(order)
        moved = compose(view, place)
        assert moved is not None
        np.testing.assert_array_equal(picked(whole, moved), picked(tensor.ravel(), view))
        flat = compose(Layout.packed((prod(shape),)), place)
        if flat is not None:
            np.testing.assert_array_equal(picked(whole, flat), tensor.ravel())


def picked(flat, layout: Layout):
    index = np.full(layout.shape, layout.offset)
    for d, (n, s) in enumerate(zip(layout.shape, layout.strides, strict=True)):
        index += (np.arange(n) * s).reshape([-1 if e == d else 1 for e in range(len(layout.shape))])
    return flat[index]


def test_sums_of_products_accumulate():
    text = """graph(%0: f32[4,3], %1: f32[3,5], %2: f32[4,3], %3: f32[3,5], %4: f32[4,5]) {
        %5: f32[4,5] = matmul(%0, %1) %6: f32[4,5] = matmul(%2, %3)
        %7: f32[4,5] = add(%5, %6) %8: f32[4,5] = add(%7, %4) return %8 }"""
    plan = plan_of(text)
    assert kinds(plan) == ["Gemm", "Gemm", "Map"]
    assert [s.accumulate for s in plan.stages[:2]] == [False, True]
    a, b, c, d, e = (floats(*s, seed=i) for i, s in enumerate(
        [(4, 3), (3, 5), (4, 3), (3, 5), (4, 5)]))  # fmt: skip
    np.testing.assert_allclose(values(text, a, b, c, d, e)[0], a @ b + c @ d + e, rtol=1e-4)


def test_an_lstm_cell_is_one_map_per_step():
    text = """graph(%0: f32[4,32], %1: f32[32], %2: f32[4,8]) {
        %3: f32[4,32] = add(%0, %1)
        %4: f32[4,8], %5: f32[4,8], %6: f32[4,8], %7: f32[4,8] = split(%3; sizes=[8,8,8,8], dim=1)
        %8: f32[4,8] = sigmoid(%4) %9: f32[4,8] = sigmoid(%5) %10: f32[4,8] = tanh(%6)
        %11: f32[4,8] = sigmoid(%7) %12: f32[4,8] = mul(%9, %2) %13: f32[4,8] = mul(%8, %10)
        %14: f32[4,8] = add(%12, %13) %15: f32[4,8] = tanh(%14) %16: f32[4,8] = mul(%11, %15)
        return %14, %16, %8, %9, %10, %11, %15 }"""
    plan = plan_of(text)
    assert kinds(plan) == ["Map"], describe_plan(plan)
    assert len(plan.stages[0].stores) == 7


# --- where results go --------------------------------------------------------------------------

UPDATE = """graph(%0: f32[4,6], %1: f32[4,6]) {
    %2: f32[4,6] = mul(%1, 0.1) %3: f32[4,6] = sub(%0, %2) return %3 }"""


def test_an_update_is_written_in_place():
    plan = plan_of(UPDATE, writes={0: 0})
    assert kinds(plan) == ["Map"]
    assert plan.stages[0].stores[0].buffer == plan.inputs[0] == plan.outputs[0][0]
    p, g = floats(4, 6), floats(4, 6, seed=1)
    expected = p - g * np.float32(0.1)
    values(UPDATE, p, g, writes={0: 0})
    np.testing.assert_array_equal(p, expected)


def test_an_update_waits_for_readers_of_the_old_value():
    text = """graph(%0: f32[4,4], %1: f32[4,4]) {
        %2: f32[4,4] = sub(%0, %1) %3: f32[4,4] = matmul(%0, %1) return %2, %3 }"""
    p, g = floats(4, 4), floats(4, 4, seed=1)
    old = p.copy()
    for order in ("forward", "backward"):
        p[...] = old
        product = values(text, p, g, writes={0: 0}, order=order)[1]
        np.testing.assert_array_equal(p, old - g)
        np.testing.assert_allclose(product, old @ g, rtol=1e-5)


def test_an_update_that_reads_other_elements_is_copied():
    text = """graph(%0: f32[4,4]) {
        %1: f32[4,4] = permute(%0; dims=[1,0]) %2: f32[4,4] = add(%0, %1) return %2 }"""
    assert kinds(plan_of(text, writes={0: 0})) == ["Map", "Map"]
    p = floats(4, 4)
    expected = p + p.T
    values(text, p, writes={0: 0})
    np.testing.assert_array_equal(p, expected)


def test_two_inputs_can_be_swapped():
    text = """graph(%0: f32[6], %1: f32[6]) {
        %2: f32[6] = clone(%1) %3: f32[6] = clone(%0) return %2, %3 }"""
    a, b = floats(6), floats(6, seed=1)
    x, y = a.copy(), b.copy()
    values(text, x, y, writes={0: 0, 1: 1})
    np.testing.assert_array_equal(x, b)
    np.testing.assert_array_equal(y, a)


# --- dtypes and indices ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_narrow_floats_round_after_every_op(dtype):
    """As eagerly, where every result is stored in the narrow type."""
    import ml_dtypes

    kind = np.float16 if dtype == "f16" else ml_dtypes.bfloat16
    text = f"""graph(%0: {dtype}[8,40], %1: {dtype}[8,40]) {{
        %2: {dtype}[8,40] = mul(%0, %1) %3: {dtype}[8,40] = add(%2, %0) return %3 }}"""
    scale = np.float32(10.0) ** np.random.default_rng(2).integers(-6, 5, (8, 40))
    with np.errstate(over="ignore"):
        x, y = (floats(8, 40) * scale).astype(kind), floats(8, 40, seed=1).astype(kind)
        expected = x * y + x
    np.testing.assert_array_equal(
        values(text, x, y)[0].astype(np.float32), expected.astype(np.float32)
    )


@pytest.mark.parametrize("dtype", ["i8", "i16", "i32", "u8"])
def test_narrow_integers_wrap_after_every_op(dtype):
    kind = {"i8": np.int8, "i16": np.int16, "i32": np.int32, "u8": np.uint8}[dtype]
    text = f"""graph(%0: {dtype}[50]) {{
        %1: {dtype}[50] = mul(%0, %0) %2: {dtype}[50] = floor_divide(%1, 3) return %2 }}"""
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    x = np.random.default_rng(0).integers(low, high, 50, endpoint=True).astype(kind)
    np.testing.assert_array_equal(values(text, x)[0], np.multiply(x, x) // kind(3))


def test_integer_division_never_traps():
    text = """graph(%0: i64[4], %1: i64[4]) {
        %2: i64[4] = floor_divide(%0, %1) %3: i64[4] = remainder(%0, %1) return %2, %3 }"""
    x = np.array([5, -(2**63), 7, -7])
    y = np.array([0, -1, -2, 2])
    q, r = values(text, x, y)
    assert q.tolist() == [0, -(2**63), -4, -4]
    assert r.tolist() == [0, 0, -1, 1]


def test_integer_products_are_folds():
    text = "graph(%0: i32[2,3,4], %1: i32[4,5]) { %2: i32[2,3,5] = matmul(%0, %1) return %2 }"
    assert kinds(plan_of(text)) == ["Reduce"]
    x = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    y = np.arange(20, dtype=np.int32).reshape(4, 5)
    np.testing.assert_array_equal(values(text, x, y)[0], x @ y)


@pytest.mark.parametrize("dim", [0, 1])
def test_rows_are_selected_inside_a_fused_stage(dim):
    shape = "3,6" if dim == 0 else "4,3"
    text = f"""graph(%0: f32[4,6], %1: i64[3]) {{
        %2: f32[{shape}] = index_select(%0, %1; dim={dim}) %3: f32[{shape}] = exp(%2)
        return %3 }}"""
    assert kinds(plan_of(text)) == ["Map"]
    x, index = floats(4, 6), np.array([3, -1, 0])
    np.testing.assert_allclose(values(text, x, index)[0], np.exp(np.take(x, index, dim)), rtol=1e-6)


@pytest.mark.parametrize("bad", [4, -5, 2**62, -(2**62)])
def test_an_index_out_of_range_sets_the_flag(bad):
    program = build_program(
        parse("""graph(%0: f32[4,6], %1: i64[3]) {
            %2: f32[3,6] = index_select(%0, %1; dim=0) return %2 }"""),
        workers=1,
    )
    x = floats(4, 6)
    assert run(program, [x, np.array([0, 3, -4])])[1] == 0
    assert run(program, [x, np.array([0, bad, 1])])[1] == 1 + program.plan.inputs[0]


def test_zero_sizes():
    text = """graph(%0: f32[0,3], %1: f32[3,2], %2: f32[2,0]) {
        %3: f32[0,2] = matmul(%0, %1) %4: f32[3,0] = matmul(%1, %2)
        %5: f32[3] = sum(%4; dims=[1], keepdim=false) %6: f32[3,3] = matmul(%4, %0)
        %7: f32[0,2] = exp(%3) return %7, %5, %6 }"""
    empty, sums, product = values(text, floats(0, 3), floats(3, 2), floats(2, 0))
    assert empty.shape == (0, 2)
    assert not sums.any() and not product.any()


def test_large_full_reductions_are_cut():
    plan = plan_of("""graph(%0: f32[512,256]) {
        %1: f32[] = sum(%0; dims=[0,1], keepdim=false) return %1 }""")
    assert kinds(plan) == ["Reduce", "Reduce"]
    assert plan.stages[0].kept == 1


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("order", ["forward", "backward"])
def test_softmax_with_any_number_of_workers(workers, order):
    text = """graph(%0: f32[13,37]) {
        %1: f32[13,1] = amax(%0; dims=[1], keepdim=true) %2: f32[13,37] = sub(%0, %1)
        %3: f32[13,37] = exp(%2) %4: f32[13,1] = sum(%3; dims=[1], keepdim=true)
        %5: f32[13,37] = div(%3, %4) return %5 }"""
    x = floats(13, 37)
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(
        values(text, x, workers=workers, order=order)[0], e / e.sum(1, keepdims=True), rtol=1e-5
    )


# --- overlap -----------------------------------------------------------------------------------


def test_overlap_of_pieces_is_exact():
    rng = np.random.default_rng(0)
    for _ in range(300):
        shape = tuple(int(n) for n in rng.integers(1, 6, 2))
        whole = Layout.packed(shape)
        pieces = []
        for _ in range(2):
            start = [int(rng.integers(0, n)) for n in shape]
            size = [int(rng.integers(1, n - a + 1)) for n, a in zip(shape, start, strict=True)]
            pieces.append(whole.slice(start, size, (1, 1)))
        touched = [
            {p.offset + i * p.strides[0] + j * p.strides[1]
             for i in range(p.shape[0]) for j in range(p.shape[1])} for p in pieces
        ]  # fmt: skip
        assert layouts_overlap(*pieces) == bool(touched[0] & touched[1]), pieces


def test_stages_are_described():
    plan = plan_of("""graph(%0: f32[4,6], %1: f32[6,2]) {
        %2: f32[4,2] = matmul(%0, %1) %3: f32[4] = sum(%2; dims=[1], keepdim=false) return %3 }""")
    text = describe_plan(plan)
    assert "gemm 1x(4x2x6) float32" in text and "reduce 4x2 keeping 1" in text
    assert any(isinstance(s, Gemm) for s in plan.stages)
    assert not any(isinstance(s, Map) for s in plan.stages)
    assert any(isinstance(s, Reduce) for s in plan.stages)
