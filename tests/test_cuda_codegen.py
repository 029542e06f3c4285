"""Programs printed as CUDA C++ and run on the host shim give what eager gives.

Blocks and threads are fibers, memory is NaN where nothing was written yet, and the order in which
blocks run is chosen to hurt.
"""

from dataclasses import replace

import numpy as np
import pytest
from shim_compiler import ShimCompiler

import eager
import jit
from eager.errors import IndexOutOfRange
from eager.nn import functional as F
from jit.codegen import shim
from jit.codegen.cuda import print_program
from jit.fusion import build_program
from jit.fusion.program import assemble, without_barrier
from jit.parser import parse

ORDERS = [shim.IN_TURN, shim.LOWEST_FIRST, shim.HIGHEST_FIRST, 3, 4]
RNG = np.random.default_rng(0)


def real(*shape, dtype=np.float32):
    return eager.tensor(RNG.standard_normal(shape).astype(dtype))


def integers(low, high, *shape):
    return eager.tensor(RNG.integers(low, high, shape))


def mlp_step(x, y, w1, b1, w2, b2):
    """Loss and gradients of a small classifier."""
    leaves = [t.detach().requires_grad_() for t in (w1, b1, w2, b2)]
    w1, b1, w2, b2 = leaves
    loss = F.cross_entropy(F.relu(x @ w1 + b1) @ w2 + b2, y)
    return (loss.detach(), *eager.autograd.grad(loss, leaves))


def lstm_cell(x, h, c, w, u, b):
    i, f, g, o = (x @ w + h @ u + b).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def layer_norm_gradient(x, w, b):
    x, w, b = (t.detach().requires_grad_() for t in (x, w, b))
    y = F.gelu(F.layer_norm(x, (x.shape[-1],), w, b))
    return (y.detach(), *eager.autograd.grad((y * y).sum(), [x, w, b]))


CASES = {
    "elementwise": (
        lambda x, y: ((x * y).tanh() + y.exp() / (x.abs() + 1), (x > y) & (y < 1)),
        [real(37, 50), real(37, 50)],
    ),
    "double": (
        lambda x: ((x.sin() + x.square().log1p()).sum(0), x.cos().floor()),
        [real(20, 31, dtype=np.float64)],
    ),
    "float16": (lambda x, y: (x * y + 1, (x + y).sum(1)), [real(9, 70).half(), real(70).half()]),
    "bfloat16": (
        lambda x: (x.exp(), x.float() * 2),
        [real(40, 33).bfloat16()],
    ),
    "integers": (
        lambda a, b: (a // b, a % b, a * b - a, (a == b).sum(), a.to(eager.int8), a >> 1),
        [integers(-90, 90, 30, 20), integers(1, 9, 20)],
    ),
    "broadcast": (
        lambda x, y, z: (x + y) * z - x.mean(),
        [real(4, 1, 30), real(25, 1), real(25, 30)],
    ),
    "views": (
        lambda x: (x.T[3:30:2].flip(0), x.reshape(50, 40).T.contiguous(), x[:, None, ::3]),
        [real(40, 50)],
    ),
    "pieces": (
        lambda x, y: (eager.cat([x, y.T, x * 2], 0), eager.stack([x, -x], 1)),
        [real(12, 17), real(17, 9)],
    ),
    "reduce": (
        lambda x: (x.sum(), x.sum(0), x.amax(2), x.mean((0, 2)), (x > 0).any(1), x.prod(1)),
        [real(13, 7, 40)],
    ),
    "long rows": (lambda x: (x.sum(1), x.amin(0)), [real(3, 5000)]),
    "softmax": (lambda x: (x.softmax(1), x.log_softmax(0), x.logsumexp(1)), [real(50, 60)]),
    "matmul": (
        lambda x, y, z: (x @ y, y.transpose(1, 2) @ z, (x @ y) * 2 + 1),
        [real(3, 20, 33), real(3, 33, 41), real(33, 5)],
    ),
    "index": (
        lambda t, i, j: (t[i], F.embedding(i, t), t.gather(1, j), F.one_hot(i, 12)),
        [real(12, 20), integers(0, 12, 6, 5), integers(0, 20, 12, 3)],
    ),
    "mlp step": (
        mlp_step,
        [real(64, 30), integers(0, 10, 64), real(30, 48), real(48), real(48, 10), real(10)],
    ),
    "lstm cell": (
        lstm_cell,
        [real(16, 8), real(16, 32), real(16, 32), real(8, 128), real(32, 128), real(128)],
    ),
    "layer norm": (layer_norm_gradient, [real(24, 40), real(40), real(40)]),
}


def flat(result):
    return list(result) if isinstance(result, tuple) else [result]


def assert_same(actual, expected):
    for a, e in zip(flat(actual), flat(expected), strict=True):
        assert a.dtype == e.dtype
        if e.dtype.is_floating_point:
            tolerance = {2: 1e-2, 4: 2e-5, 8: 1e-12}[e.dtype.itemsize]
            a, e = a.double().numpy(), e.double().numpy()
            np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(a.numpy(), e.numpy())


@pytest.mark.parametrize("order", [shim.LOWEST_FIRST, shim.HIGHEST_FIRST, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_printed_program_gives_what_eager_gives(name, order):
    fn, args = CASES[name]
    compiled = jit.Compiled(fn, compiler=ShimCompiler(order=order), warmup=0, fullgraph=True)
    compiled(*args)  # is traced
    actual = compiled(*args)
    assert compiled.stats().compiled_calls == 1
    assert_same(actual, fn(*args))


def test_random_numbers_are_those_of_eager():
    compiled = jit.Compiled(
        lambda x: (eager.rand(40, 3), F.dropout(x, 0.5)), compiler=ShimCompiler(), warmup=0
    )
    x = real(30, 20)
    compiled(x)
    eager.manual_seed(7)
    actual = compiled(x)
    assert compiled.stats().compiled_calls == 1
    eager.manual_seed(7)
    assert_same(actual, (eager.rand(40, 3), F.dropout(x, 0.5)))


def test_memory_that_is_overwritten():
    def step(p, g):
        p.add_(g, alpha=-0.5)
        return p.sum()

    p, g = real(30, 20), real(30, 20)
    compiled = jit.Compiled(step, compiler=ShimCompiler(), warmup=0)
    expected = p.clone()
    for launch in range(3):
        assert_same((compiled(p, g), p), (step(expected, g), expected))
        assert compiled.stats().compiled_calls == launch


def test_an_index_out_of_range_is_reported():
    compiled = jit.Compiled(lambda t, i: t[i], compiler=ShimCompiler(), warmup=0)
    compiled(real(5, 3), integers(0, 5, 4))
    with pytest.raises(IndexOutOfRange, match="out of range"):
        compiled(real(5, 3), eager.tensor([1, 2, 5, 0]))


def test_the_grid_may_be_smaller_than_the_schedule():
    program, inputs = chain(workers=8)
    expected = shim.run(print_program(program), inputs)
    small = replace(print_program(program), blocks=3)
    for a, e in zip(shim.run(small, inputs), expected, strict=True):
        np.testing.assert_array_equal(a, e)


def test_as_many_workers_as_a_large_card_has_blocks():
    program, inputs = chain(workers=132)
    (y, s), expected = shim.run(print_program(program), inputs, threads=16), reference(*inputs)
    np.testing.assert_allclose(y, expected[0], atol=1e-5)
    np.testing.assert_allclose(s, expected[1], rtol=1e-4)


def test_a_task_too_large_for_a_block_is_refused():
    graph = parse("graph(%0: f32[64,64]) {\n  %1: f32[64,64] = neg(%0)\n  return %1\n}")
    program = build_program(graph, workers=1)
    program.words[2] = 1 << 31  # the extent of the only task's only loop
    with pytest.raises(NotImplementedError, match="2147483648 points"):
        print_program(program)


# --- barriers -----------------------------------------------------------------------------------

CHAIN = """
graph(%0: f32[64,64], %1: f32[64,64]) {
  %2: f32[64,64] = matmul(%0, %1)
  %3: f32[64,64] = permute(%2; dims=[1,0])
  %4: f32[64,64] = tanh(%3)
  %5: f32[64,64] = matmul(%4, %2)
  %6: f32[64,64] = permute(%5; dims=[1,0])
  %7: f32[64,64] = matmul(%6, %5)
  %8: f32[64] = sum(%7; dims=[0], keepdim=false)
  return %7, %8
}
"""


def chain(workers=4):
    """A program in which every product reads columns that other workers wrote as rows."""
    rng = np.random.default_rng(1)
    inputs = [(rng.standard_normal((64, 64)) / 8).astype(np.float32) for _ in range(2)]
    return build_program(parse(CHAIN), workers=workers), inputs


def reference(x, w):
    a = x @ w
    b = np.tanh(a.T) @ a
    c = b.T @ b
    return c, c.sum(0)


def differs(program, inputs, expected):
    """Whether some order of blocks gives a wrong result."""
    for order in ORDERS:
        outputs = shim.run(print_program(program), inputs, order=order)
        for a, e in zip(outputs, expected, strict=True):
            if not np.allclose(a, e, rtol=1e-4, atol=1e-4):
                return True
    return False


def test_every_order_gives_the_right_result():
    program, inputs = chain()
    assert program.epochs > 2
    assert not differs(program, inputs, reference(*inputs))


def test_leaving_out_any_barrier_shows():
    program, inputs = chain()
    for barrier in range(program.epochs - 1):
        schedule = without_barrier(program.schedule, barrier)
        broken = assemble(program.plan, schedule)
        assert differs(broken, inputs, reference(*inputs)), f"barrier {barrier}"
