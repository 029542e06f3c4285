"""Every registered op and composite, compiled: the same values and gradients as eagerly."""

import numpy as np
import pytest
from jit_reference import Reference

import eager
import jit
from eager import _C
from eager.op import Composite, Op, Sample, composites, registry
from jit.compile import Compiled
from jit.graph import SHORT
from jit.verify import verifying

ALL = [*registry.values(), *composites.values()]
FUSED_SAMPLES = 2  # compiled with the real back end, per op; all run with the reference


@pytest.fixture(autouse=True)
def _verify():
    with verifying():
        yield


def call_of(op: Op | Composite):
    return op.public if op.public is not None else _C.make_op_function(op)


def samples_of(op: Op | Composite) -> list[Sample]:
    found = op.samples(np.random.default_rng(5)) if op.samples is not None else []
    return [Sample(tensor(s.args), {k: tensor(v) for k, v in s.kwargs.items()}) for s in found]


def tensor(x):
    """What a sample's argument stands for: a tensor like the array, with its strides, float32 for
    float64; or a dtype."""
    if isinstance(x, str) and x in SHORT:
        return getattr(eager, x)
    if not isinstance(x, np.ndarray):
        return type(x)(tensor(y) for y in x) if isinstance(x, list | tuple) else x
    if x.dtype != np.float64:
        return eager.from_numpy(x)
    y = np.empty_like(x, dtype=np.float32)
    y[...] = x
    return eager.from_numpy(y)


def tensors_in(x) -> list:
    if isinstance(x, list | tuple):
        return [t for y in x for t in tensors_in(y)]
    return [x] if isinstance(x, eager.Tensor) else []


def compare(compiled, expected) -> None:
    a, b = tensors_in(compiled), tensors_in(expected)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_allclose(
            x.detach().numpy(), y.detach().numpy(), rtol=2e-5, atol=1e-5, equal_nan=True
        )


def check(op, sample: Sample, compiler) -> None:
    fn = call_of(op)
    args = sample.args
    f = Compiled(lambda *xs: fn(*xs, **sample.kwargs), warmup=0, compiler=compiler)
    expected = fn(*args, **sample.kwargs)
    for _ in range(2):
        compare(f(*args), expected)
    assert f.stats().compiled_calls == 1, f.stats()


def check_gradient(op, sample: Sample, compiler) -> None:
    fn = call_of(op)
    args = sample.args
    leaves = [i for i, a in enumerate(args)
              if isinstance(a, eager.Tensor) and a.dtype.is_floating_point]  # fmt: skip

    def loss(*xs):
        outputs = tensors_in(fn(*xs, **sample.kwargs))
        return sum((y * (y + 0.5)).sum() for y in outputs if y.dtype.is_floating_point)

    probe = [a.detach().requires_grad_() if i in leaves else a for i, a in enumerate(args)]
    total = loss(*probe)
    if not (isinstance(total, eager.Tensor) and total.requires_grad):
        return
    step = jit.value_and_grad(loss, tuple(leaves))
    f = Compiled(step, warmup=0, compiler=compiler)
    expected = step(*args)
    for _ in range(2):
        compare(f(*args), expected)
    assert f.stats().compiled_calls == 1, f.stats()

    # and by differentiating the forward graph
    g = Compiled(loss, warmup=0, compiler=compiler)
    for _ in range(2):
        again = [a.detach().requires_grad_() if i in leaves else a for i, a in enumerate(args)]
        g(*again).backward()
    assert g.stats().compiled_calls == 1, g.stats()
    grads = [again[i].grad for i in leaves]
    for x, y in zip(grads, expected[1], strict=True):
        compare(eager.zeros_like(y) if x is None else x, y)


def reads_data(op) -> bool:
    """Ops whose result's shape depends on values cannot be one program."""
    return op.name in DYNAMIC


DYNAMIC = {"nonzero", "masked_select", "one_hot"}


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_values(op):
    if reads_data(op):
        pytest.skip("the shape of the result depends on values")
    for sample in samples_of(op):
        check(op, sample, Reference)


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_values_fused(op):
    if reads_data(op):
        pytest.skip("the shape of the result depends on values")
    for sample in samples_of(op)[-FUSED_SAMPLES:]:
        check(op, sample, None)


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_gradients(op):
    if reads_data(op) or (isinstance(op, Op) and op.vjp is None):
        pytest.skip("there is no gradient")
    for sample in samples_of(op):
        check_gradient(op, sample, Reference)


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_gradients_fused(op):
    if reads_data(op) or (isinstance(op, Op) and op.vjp is None):
        pytest.skip("there is no gradient")
    for sample in samples_of(op)[-FUSED_SAMPLES:]:
        check_gradient(op, sample, None)
