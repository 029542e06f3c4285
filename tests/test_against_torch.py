"""Comparison with PyTorch, if it is installed (the `bench` extra)."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import eager

torch = pytest.importorskip("torch")

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
          "bool")  # fmt: skip
ARITHMETIC = (operator.add, operator.mul, operator.truediv)
COMPARISONS = (operator.lt, operator.ge, operator.eq)


def make(values: Any, dtype: str) -> tuple[Any, Any]:
    """The same tensor in both libraries."""
    array = np.asarray(values)
    ours = eager.from_numpy(array).to(getattr(eager, dtype))
    return ours, torch.from_numpy(np.array(array)).to(getattr(torch, dtype))


def assert_same(ours: Any, theirs: Any, tolerance: float = 0.0) -> None:
    assert tuple(ours.shape) == tuple(theirs.shape)
    assert str(ours.dtype).removeprefix("eager.") == str(theirs.dtype).removeprefix("torch.")
    wide = torch.float64 if theirs.is_floating_point() else theirs.dtype
    a = ours.detach().to(eager.float64 if theirs.is_floating_point() else ours.dtype).numpy()
    np.testing.assert_allclose(a, theirs.detach().to(wide).numpy(), rtol=tolerance, atol=tolerance)


# --- type promotion ------------------------------------------------------------------------------

numbers = st.sampled_from([True, 2, 2.5])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.booleans(), st.booleans(),
    st.sampled_from(ARITHMETIC + COMPARISONS),
)  # fmt: skip
def test_promotion_of_tensors(a: str, b: str, scalar_a: bool, scalar_b: bool, op: Any) -> None:
    x, tx = make(1 if scalar_a else [1, 1], a)
    y, ty = make(1 if scalar_b else [1, 1], b)
    assert_same(op(x, y), op(tx, ty))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(DTYPES), numbers, st.booleans(), st.sampled_from(ARITHMETIC + COMPARISONS))
def test_promotion_of_numbers(dtype: str, number: Any, swapped: bool, op: Any) -> None:
    x, tx = make([1, 1], dtype)
    if swapped:
        assert_same(op(number, x), op(number, tx), 1e-2 if "16" in dtype else 1e-6)
    else:
        assert_same(op(x, number), op(tx, number), 1e-2 if "16" in dtype else 1e-6)


# --- broadcasting --------------------------------------------------------------------------------

sizes = st.integers(0, 3)
shapes = st.lists(sizes, max_size=4).map(tuple)


@settings(max_examples=200, deadline=None)
@given(shapes, shapes)
def test_broadcasting(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, tx = make(np.random.default_rng(0).normal(size=a), "float64")
    y, ty = make(np.random.default_rng(1).normal(size=b), "float64")
    try:
        theirs = tx + ty
    except RuntimeError:
        with pytest.raises(eager.errors.ShapeError):
            x + y
        return
    assert_same(x + y, theirs)
    x.requires_grad_()
    tx.requires_grad_()
    ((x + y) * 2).sum().backward()
    ((tx + ty) * 2).sum().backward()
    assert_same(x.grad, tx.grad)


# --- indexing ------------------------------------------------------------------------------------

SHAPE = (3, 4, 2)


@st.composite
def indices(draw: Any) -> tuple[Any, ...]:
    """An index into a tensor of SHAPE: (what we take, what torch takes)."""
    parts: list[Any] = []
    dim, vector, ellipsis = 0, draw(st.integers(1, 3)), False
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["slice", "int", "none", "ellipsis", "tensor", "mask"]))
        if kind == "none":
            parts.append(None)
            continue
        if kind == "ellipsis":
            if not ellipsis:
                parts.append(Ellipsis)
                dim, ellipsis = draw(st.integers(dim, len(SHAPE))), True
                if dim != len(SHAPE):  # what follows must use up the rest
                    parts += [slice(None)] * (len(SHAPE) - dim)
                    dim = len(SHAPE)
            continue
        if dim == len(SHAPE):
            continue
        n = SHAPE[dim]
        dim += 1
        if kind == "int":
            parts.append(draw(st.integers(-n, n - 1)))
        elif kind == "slice":
            bound = st.none() | st.integers(-n - 1, n + 1)
            parts.append(slice(draw(bound), draw(bound), draw(st.integers(1, 3))))
        elif kind == "tensor":
            parts.append(np.array(draw(st.lists(st.integers(-n, n - 1), min_size=vector,
                                                max_size=vector))))  # fmt: skip
        else:
            mask = np.zeros(n, bool)
            mask[draw(st.permutations(range(n)))[: min(vector, n)]] = True
            assume(mask.sum() == vector)
            parts.append(mask)
    return tuple(parts)


def in_both(index: tuple[Any, ...]) -> tuple[Any, Any]:
    def place(make_tensor: Any) -> Any:
        return tuple(make_tensor(i) if isinstance(i, np.ndarray) else i for i in index)

    return place(eager.from_numpy), place(torch.from_numpy)


@settings(max_examples=300, deadline=None)
@given(indices())
def test_reading_by_index(index: tuple[Any, ...]) -> None:
    x, tx = make(np.arange(24.0).reshape(SHAPE), "float64")
    x.requires_grad_()
    tx.requires_grad_()
    ours, theirs = in_both(index)
    y, ty = x[ours], tx[theirs]
    assert_same(y, ty)
    (y * y).sum().backward()
    (ty * ty).sum().backward()
    assert_same(x.grad, tx.grad)


@settings(max_examples=300, deadline=None)
@given(indices(), st.booleans())
def test_writing_by_index(index: tuple[Any, ...], number: bool) -> None:
    x, tx = make(np.arange(24.0).reshape(SHAPE), "float64")
    ours, theirs = in_both(index)
    if number:
        x[ours] = -1.5
        tx[theirs] = -1.5
    else:
        # one value everywhere: of places named twice either write may be the last
        shape = tuple(tx[theirs].shape)
        value, tvalue = make(np.full(shape, -2.5), "float64")
        x[ours] = value
        tx[theirs] = tvalue
    assert_same(x, tx)


# --- training, step by step ----------------------------------------------------------------------


class Library:
    """What a script needs of either library, on the same initial numbers."""

    def __init__(self, module: Any) -> None:
        self.xp = module
        self.F = module.nn.functional
        self.rng = np.random.default_rng(0)

    def tensor(self, *shape: int) -> Any:
        return self.xp.tensor(self.rng.normal(size=shape).astype(np.float32).tolist())

    def parameter(self, *shape: int) -> Any:
        values = self.rng.normal(size=shape) / np.sqrt(shape[0])
        return self.xp.nn.Parameter(self.xp.tensor(values.astype(np.float32).tolist()))

    def labels(self, n: int, classes: int) -> Any:
        return self.xp.tensor(self.rng.integers(0, classes, n).tolist())


def mlp(lib: Library) -> list[float]:
    w1, b1 = lib.parameter(8, 32), lib.parameter(32)
    w2, b2 = lib.parameter(32, 4), lib.parameter(4)
    x, y = lib.tensor(64, 8), lib.labels(64, 4)
    opt = lib.xp.optim.Adam([w1, b1, w2, b2], lr=1e-2)
    losses = []
    for _ in range(20):
        opt.zero_grad()
        loss = lib.F.cross_entropy(lib.F.gelu(x @ w1 + b1) @ w2 + b2, y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


def lstm(lib: Library) -> list[float]:
    n, width = 16, 12
    wx, wh, bias = lib.parameter(5, 4 * width), lib.parameter(width, 4 * width), lib.parameter(1)
    out = lib.parameter(width, 1)
    x, y = lib.tensor(7, n, 5), lib.tensor(n, 1)
    opt = lib.xp.optim.SGD([wx, wh, bias, out], lr=0.05, momentum=0.9, weight_decay=1e-3)
    losses = []
    for _ in range(15):
        h, c = lib.xp.zeros(n, width), lib.xp.zeros(n, width)
        for step in range(x.shape[0]):
            i, f, g, o = (x[step] @ wx + h @ wh + bias).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        loss = ((h @ out - y) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


def attention(lib: Library) -> list[float]:
    """A pre-norm transformer block on token embeddings."""
    batch, length, width, heads, tokens = 4, 6, 16, 4, 11
    table, qkv = lib.parameter(tokens, width), lib.parameter(width, 3 * width)
    proj = lib.parameter(width, width)
    up, down, head = (
        lib.parameter(width, 32),
        lib.parameter(32, width),
        lib.parameter(width, tokens),
    )
    parameters = [table, qkv, proj, up, down, head]
    ids = lib.labels(batch * (length + 1), tokens).reshape(batch, length + 1)
    opt = lib.xp.optim.AdamW(parameters, lr=3e-3)
    losses = []
    for _ in range(12):
        x = lib.F.embedding(ids[:, :-1], table)
        normed = lib.F.layer_norm(x, (width,))
        parts = (normed @ qkv).reshape(batch, length, 3, heads, width // heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = lib.F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + mixed.transpose(1, 2).reshape(batch, length, width) @ proj
        x = x + lib.F.silu(lib.F.layer_norm(x, (width,)) @ up) @ down
        logits = (x @ head).reshape(-1, tokens)
        loss = lib.F.cross_entropy(logits, ids[:, 1:].reshape(-1))
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("script", [mlp, lstm, attention])
def test_training(script: Any) -> None:
    ours, theirs = script(Library(eager)), script(Library(torch))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours[-1] < ours[0]
