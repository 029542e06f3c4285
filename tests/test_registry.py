"""Tests that the definitions alone generate: every op and composite, on its samples."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import eager
from eager.errors import EagerError
from eager.op import Composite, Op, Sample, composites, registry
from eager.samples import strided

DEFINITIONS: dict[str, Op | Composite] = {
    **{f"op {name}": op for name, op in registry.items()},
    **{f"composite {name}": op for name, op in composites.items()},
}
FLOATS = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# Comparisons with the reference, which computes in float64.
TOLERANCE = {"float64": 1e-11, "float32": 3e-5, "bfloat16": 4e-2, "float16": 6e-3}
# What they return depends on values, which meta tensors do not have.
NEEDS_VALUES = {
    "op nonzero", "composite masked_select", "composite one_hot", "composite bincount",
    "composite histc", "composite unique", "composite unique_consecutive",
}  # fmt: skip
DTYPES = {
    name: getattr(eager, name)
    for name in (*FLOATS, "int8", "int16", "int32", "int64", "uint8", "bool")
}


def samples_of(name: str) -> list[Sample]:
    make = DEFINITIONS[name].samples
    assert make is not None
    return list(make(np.random.default_rng(zlib.crc32(name.encode()))))


def walk(value: Any, fn: Callable[[Any], Any]) -> Any:
    """Applies `fn` to the leaves of nested lists, tuples and dictionaries of arguments."""
    if isinstance(value, list):
        return [walk(v, fn) for v in value]
    if isinstance(value, tuple):
        return tuple(walk(v, fn) for v in value)
    if isinstance(value, dict):
        return {k: walk(v, fn) for k, v in value.items()}
    return fn(value)


def with_floats(sample: Sample, dtype: np.dtype[Any]) -> Sample:
    """The floating arrays of a sample in another dtype, and as contiguous as they were."""

    def convert(v: Any) -> Any:
        if not isinstance(v, np.ndarray) or v.dtype.kind != "f":
            return v
        out = v.astype(dtype)
        return out if v.flags.c_contiguous else strided(out)

    return Sample(walk(sample.args, convert), walk(dict(sample.kwargs), convert))


def is_floating(v: Any) -> bool:
    return isinstance(v, np.ndarray) and (v.dtype.kind == "f" or v.dtype == ml_dtypes.bfloat16)


def to_tensor(v: Any) -> Any:
    if isinstance(v, np.ndarray):
        if v.dtype == ml_dtypes.bfloat16:
            return eager.from_numpy(v.astype(np.float32)).to(eager.bfloat16)
        return eager.from_numpy(v)
    return DTYPES.get(v, v) if isinstance(v, str) else v


def public_call(name: str) -> Callable[..., Any]:
    call = DEFINITIONS[name].public
    assert call is not None
    return call


def run(name: str, sample: Sample) -> tuple[Any, ...]:
    """The results of the public call as a flat tuple of tensors."""
    result = public_call(name)(
        *walk(sample.args, to_tensor), **walk(dict(sample.kwargs), to_tensor)
    )
    return tuple(result) if isinstance(result, list | tuple) else (result,)


def reference(name: str, sample: Sample) -> tuple[Any, ...]:
    """The reference's results, computed in float64."""

    def widen(v: Any) -> Any:
        return v.astype(np.float64) if is_floating(v) else v

    ref = DEFINITIONS[name].ref
    assert ref is not None
    with np.errstate(all="ignore"):
        result = ref(*walk(sample.args, widen), **walk(dict(sample.kwargs), widen))
    return tuple(result) if isinstance(result, list | tuple) else (result,)


def to_numpy(t: Any) -> Any:
    return t.detach().to(eager.float32).numpy() if t.dtype == eager.bfloat16 else t.detach().numpy()


def array_leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for v in value:
            yield from array_leaves(v)
    elif isinstance(value, np.ndarray):
        yield value


def has_floats(sample: Sample) -> bool:
    return any(v.dtype.kind == "f" for v in array_leaves(sample.args))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_forward(name: str, dtype: str) -> None:
    """Equals the reference, on floating inputs of every dtype and on the other samples."""
    for sample in samples_of(name):
        if not has_floats(sample) and dtype != "float64":
            continue
        sample = with_floats(sample, FLOATS[dtype])
        got, expected = run(name, sample), reference(name, sample)
        assert len(got) == len(expected), sample
        for g, e in zip(got, expected, strict=True):
            e = np.asarray(e)
            assert tuple(g.shape) == e.shape, sample
            tolerance = TOLERANCE.get(g.dtype.name, 0)
            if "float32" in (dtype, g.dtype.name) and dtype in ("float32", "float64"):
                tolerance = max(tolerance, TOLERANCE["float32"] if g.dtype.name != "float64" else 0)
            np.testing.assert_allclose(
                to_numpy(g).astype(np.float64) if e.dtype.kind == "f" else to_numpy(g),
                e, rtol=tolerance, atol=tolerance, err_msg=str(sample),
            )  # fmt: skip


@pytest.mark.parametrize("name", [n for n in DEFINITIONS if n not in NEEDS_VALUES])
def test_meta(name: str) -> None:
    """On meta tensors: the same shapes and dtypes, and no data."""

    def to_meta(v: Any) -> Any:
        v = to_tensor(v)
        return v.to("meta") if isinstance(v, eager.Tensor) else v

    for sample in samples_of(name):
        if not list(array_leaves(sample.args)):
            continue
        real = run(name, sample)
        result = public_call(name)(
            *walk(sample.args, to_meta), **walk(dict(sample.kwargs), to_meta)
        )
        inferred = tuple(result) if isinstance(result, list | tuple) else (result,)
        assert [(tuple(t.shape), t.dtype) for t in inferred] == [
            (tuple(t.shape), t.dtype) for t in real
        ], sample
        assert all(t.is_meta for t in inferred), sample


# --- gradients ------------------------------------------------------------------------------------


def differentiable(name: str) -> bool:
    d = DEFINITIONS[name]
    return d.differentiable if isinstance(d, Composite) else d.vjp is not None


def small(sample: Sample) -> bool:
    leaves = list(array_leaves(sample.args))
    sizes = [v.size for v in leaves if v.dtype.kind == "f"]
    finite = all(np.isfinite(v).all() for v in leaves if v.dtype.kind == "f")
    return bool(sizes) and sum(sizes) <= 60 and finite


class Weighted:
    """A sample's call as a function from its floating arrays to one number: the sum of all results
    times fixed random weights."""

    def __init__(self, name: str, sample: Sample) -> None:
        self.call, self.sample = public_call(name), sample
        self.rng_seed = zlib.crc32(name.encode()) + 1

    def arrays(self) -> list[Any]:
        return [v for v in array_leaves(self.sample.args) if v.dtype.kind == "f"]

    def __call__(self, xs: Sequence[Any]) -> Any:
        pending = iter(xs)

        def place(v: Any) -> Any:
            return next(pending) if is_floating(v) else to_tensor(v)

        result = self.call(
            *walk(self.sample.args, place), **walk(dict(self.sample.kwargs), to_tensor)
        )
        return weighted_sum(result if isinstance(result, list | tuple) else [result], self.rng_seed)


def weighted_sum(results: Sequence[Any], seed: int) -> Any:
    rng = np.random.default_rng(seed)
    total = None
    for t in results:
        if t is None or t.dtype != eager.float64:  # finite differences need the digits
            continue
        term = (t * eager.from_numpy(np.asarray(rng.uniform(0.5, 1.5, tuple(t.shape))))).sum()
        total = term if total is None else total + term
    return total


def leaves(arrays: Sequence[Any]) -> list[Any]:
    return [eager.from_numpy(np.array(a)).requires_grad_() for a in arrays]


def gradients(f: Callable[..., Any], arrays: Sequence[Any], create_graph: bool) -> Any:
    xs = leaves(arrays)
    y = f(xs)
    if y is None or not y.requires_grad:
        return xs, [None] * len(xs)
    return xs, eager.autograd.grad(y, xs, create_graph=create_graph, allow_unused=True)


def numeric_gradients(f: Callable[[list[Any]], float], arrays: Sequence[Any]) -> list[Any]:
    """Central differences."""
    out = []
    for i, a in enumerate(arrays):
        g = np.zeros(a.shape)
        for place in np.ndindex(*a.shape):
            values = []
            for step in (1e-6, -1e-6):
                moved = [np.array(x) for x in arrays]
                moved[i][place] += step
                values.append(f(moved))
            g[place] = (values[0] - values[1]) / 2e-6
        out.append(g)
    return out


def as_arrays(grads: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    return [
        np.zeros(a.shape) if g is None else to_numpy(g) for g, a in zip(grads, arrays, strict=True)
    ]


GRADIENT_CASES = [n for n in DEFINITIONS if differentiable(n)]


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradient(name: str) -> None:
    """Equals finite differences, whether the printed loops or the vjp itself computes it."""
    tried = 0
    for sample in samples_of(name):
        if not small(sample):
            continue
        f = Weighted(name, sample)
        arrays = f.arrays()
        _, fused = gradients(f, arrays, create_graph=False)
        _, plain = gradients(f, arrays, create_graph=True)
        expected = numeric_gradients(lambda moved, f=f: _item(f(leaves(moved))), arrays)
        for a, b, c in zip(
            as_arrays(fused, arrays), as_arrays(plain, arrays), expected, strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=str(sample))
            np.testing.assert_allclose(a, c, rtol=2e-5, atol=2e-6, err_msg=str(sample))
        tried += 1
    assert tried, f"{name}: no sample for the gradient"


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_second_gradient(name: str) -> None:
    """The gradient of the gradient equals finite differences of the gradient."""
    for sample in samples_of(name):
        if not small(sample):
            continue
        f = Weighted(name, sample)
        arrays = f.arrays()

        def first(xs: Sequence[Any], f: Weighted = f) -> Any:
            y = f(xs)
            if y is None or not y.requires_grad:
                return None
            grads = eager.autograd.grad(y, list(xs), create_graph=True, allow_unused=True)
            return weighted_sum(grads, 7)

        _, second = gradients(first, arrays, create_graph=False)
        expected = numeric_gradients(lambda moved, g=first: _item(g(leaves(moved))), arrays)
        for a, b in zip(as_arrays(second, arrays), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=str(sample))


def _item(t: Any) -> float:
    return 0.0 if t is None else float(t.item())


# --- in place ------------------------------------------------------------------------------------

IN_PLACE = [n for n in DEFINITIONS if hasattr(eager.Tensor, f"{n.split()[1]}_")]


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place(name: str) -> None:
    """x.f_(...) writes what f(x, ...) gives, where that fits, into x, and gives x."""
    method = f"{name.split()[1]}_"
    tried = 0
    for sample in samples_of(name):
        args = walk(sample.args, to_tensor)
        kwargs = walk(dict(sample.kwargs), to_tensor)
        if not isinstance(args[0], eager.Tensor):
            continue
        expected = public_call(name)(*args, **kwargs)
        x = args[0].clone()
        fits = tuple(expected.shape) == tuple(x.shape) and (
            x.dtype.is_floating_point or not expected.dtype.is_floating_point
        )
        if not fits or (x.dtype == eager.bool) != (expected.dtype == eager.bool):
            continue
        version = x._version
        assert getattr(x, method)(*args[1:], **kwargs) is x
        assert x._version > version
        np.testing.assert_array_equal(to_numpy(x), to_numpy(expected.to(x.dtype)))
        tried += 1
    if name.split()[1] not in ("eq", "ne", "lt", "le", "gt", "ge"):
        assert tried


# --- bad input -----------------------------------------------------------------------------------

ELEMENTWISE = [
    n for n, d in registry.items() if d.body is not None and not d.attrs and d.outputs == 1
]


@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if len(registry[n].inputs) == 2])
def test_shapes_that_do_not_broadcast(name: str) -> None:
    x, y = eager.ones(2, 3, dtype=eager.int64), eager.ones(2, dtype=eager.int64)
    with pytest.raises(eager.errors.ShapeError, match=rf"(?s)^{name}: .*expected: .*given: ") as e:
        registry[name].public(x, y)  # type: ignore[misc]
    assert "(2, 3)" in str(e.value)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_not_a_tensor(name: str) -> None:
    with pytest.raises((TypeError, EagerError), match=name):
        registry[name].public(*["text"] * len(registry[name].inputs))  # type: ignore[misc]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_too_few_arguments(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        registry[name].public()  # type: ignore[misc]


def test_wrong_dtypes() -> None:
    bools, floats = eager.ones(2, 2, dtype=eager.bool), eager.ones(2)
    for call, op in (
        (lambda: eager.sub(bools, bools), "sub"),
        (lambda: -bools, "neg"),
        (lambda: floats & floats, "bitwise_and"),
        (lambda: eager.where(floats, floats, floats), "where"),
        (lambda: eager.gelu(eager.ones(2, dtype=eager.int64)), "gelu"),
        (lambda: eager.gather(floats, 0, floats), "gather"),
        (lambda: eager.matmul(bools, bools), "matmul"),
        (lambda: eager.ones(2, dtype=eager.int64).mean(), "mean"),
    ):  # fmt: skip
        with pytest.raises(eager.errors.DTypeError, match=f"^{op}: "):
            call()


def test_wrong_arguments() -> None:
    x = eager.ones(2, 3)
    for call, error, op in (
        (lambda: eager.softmax(x, 2), IndexError, "softmax"),
        (lambda: eager.amax(x, (0, 0)), ValueError, "amax"),
        (lambda: eager.amax(eager.ones(2, 0), 1), ValueError, "amax"),
        (lambda: eager.argmax(eager.ones(0)), ValueError, "argmax"),
        (lambda: eager.div(x, x, rounding_mode="up"), ValueError, "div"),
        (lambda: eager.pow(eager.arange(3), -1), ValueError, "pow"),
        (lambda: eager.clamp(x), ValueError, "clamp"),
        (lambda: eager.cat([]), ValueError, "cat"),
        (lambda: eager.cat([x, eager.ones(3, 2)]), ValueError, "cat"),
        (lambda: eager.stack([x, eager.ones(3, 2)]), ValueError, "stack"),
        (lambda: eager.split(x, [1, 3], 1), ValueError, "split"),
        (lambda: eager.index_select(x, 0, eager.tensor([2])), IndexError, "index_select"),
        (lambda: eager.one_hot(eager.tensor([3]), 3), IndexError, "one_hot"),
        (lambda: eager.mm(x, eager.ones(3)), ValueError, "mm"),
        (lambda: eager.bmm(eager.ones(2, 3, 4), eager.ones(1, 4, 2)), ValueError, "bmm"),
        (lambda: x @ x, ValueError, "matmul"),
        (lambda: eager.tril(eager.ones(3)), ValueError, "tril"),
        (lambda: eager.arange(0, 5, 0), ValueError, "arange"),
        (lambda: eager.zeros(-1), ValueError, "zeros"),
        (lambda: eager.randint(5, 5, (2,)), ValueError, "randint"),
        (lambda: eager.rand(2, dtype=eager.int64), TypeError, "rand"),
        (lambda: eager.einsum("ij,jk->ik", x), ValueError, "einsum"),
        (lambda: eager.arange(3).add_(0.5), TypeError, "add"),
        (lambda: eager.arange(3).clamp_(0.5), TypeError, "clamp_"),
        (lambda: eager.ones(3).add_(x), ValueError, "add"),
    ):
        with pytest.raises(error, match=f"^{op}: ") as e:
            call()
        assert isinstance(e.value, EagerError), op


def test_integer_division_by_zero_gives_zero() -> None:
    x = eager.tensor([5, -5, -(2**63)])
    zero = eager.tensor([0, 0, 0])
    for result in (
        x // zero,
        x % zero,
        eager.div(x, zero, rounding_mode="trunc"),
        eager.fmod(x, zero),
    ):
        assert result.tolist() == [0, 0, 0]
    assert (x // eager.tensor([-1, -1, -1])).tolist() == [-5, 5, -(2**63)]
    assert (x % eager.tensor([-1, -1, -1])).tolist() == [0, 0, 0]


def test_a_definition_must_give_every_field() -> None:
    from eager.op import Promotion, elementwise

    with pytest.raises(TypeError, match="op incomplete: the definition does not give vjp, samples"):
        elementwise("incomplete", lambda k, x: x, dtype=Promotion.PROMOTE, ref=None, onnx=None)
    assert "incomplete" not in registry
