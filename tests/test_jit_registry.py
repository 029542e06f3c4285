"""Every registered op and composite, compiled: the same values and gradients as eagerly."""

import numpy as np
import pytest
from jit_reference import Reference

import eager
import jit
from eager.op import Composite, Op, Sample, composites, registry
from jit.compile import Compiled
from jit.graph import SHORT

# Per op, compiled with the real back end; all samples run with the reference.
FUSED_SAMPLES, FUSED_GRADIENTS = 2, 1


def call_of(op: Op | Composite):
    assert op.public is not None
    return op.public


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


# Composites and ops whose Python code reads data, or makes tensors of it: they stay eager.
EAGER = {
    "histc", "masked_select", "nonzero", "one_hot", "tril_indices", "triu_indices", "unique",
    "unique_consecutive",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(EAGER))
@pytest.mark.filterwarnings("ignore::jit.CompileWarning")
def test_what_reads_data_stays_correct(name):
    op = registry.get(name) or composites[name]
    for sample in samples_of(op):
        f = Compiled(lambda *xs, s=sample: call_of(op)(*xs, **s.kwargs), warmup=0)
        for _ in range(2):
            compare(f(*sample.args), call_of(op)(*sample.args, **sample.kwargs))


ALL = [op for op in (*registry.values(), *composites.values()) if op.name not in EAGER]
DIFFERENTIABLE = [op for op in ALL if isinstance(op, Composite) or op.vjp is not None]


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_values(op):
    for sample in samples_of(op):
        check(op, sample, Reference)


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_values_fused(op):
    for sample in samples_of(op)[-FUSED_SAMPLES:]:
        check(op, sample, None)


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda op: op.name)
def test_gradients(op):
    for sample in samples_of(op):
        check_gradient(op, sample, Reference)


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda op: op.name)
def test_gradients_fused(op):
    for sample in samples_of(op)[-FUSED_GRADIENTS:]:
        check_gradient(op, sample, None)
