"""Layers without recurrence against NumPy."""

import numpy as np
import pytest
from finite_differences import check_gradients

import eager
from eager import nn
from eager.errors import ArgumentError, IndexOutOfRange, ShapeError


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(*shape, seed=0):
    return eager.tensor(array(*shape, seed=seed))


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3), (0, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape, bias):
    layer = nn.Linear(3, 4, bias=bias, dtype=eager.float64)
    x = array(*shape)
    expected = x @ layer.weight.detach().numpy().T
    if bias:
        expected = expected + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(eager.tensor(x)).detach().numpy(), expected)
    if x.size:
        check_gradients(nn.functional.linear, [eager.tensor(x), *layer.parameters()])
    with pytest.raises(ShapeError, match="linear"):
        layer(tensor(2, 5))


def test_linear_starts_within_bounds():
    layer = nn.Linear(100, 50)
    for p in layer.parameters():
        assert 0.05 < p.abs().max().item() <= 0.1


def test_bilinear():
    layer = nn.Bilinear(3, 4, 2, dtype=eager.float64)
    a, b = array(5, 3), array(5, 4, seed=1)
    w = layer.weight.detach().numpy()
    expected = np.einsum("ni,oij,nj->no", a, w, b) + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(eager.tensor(a), eager.tensor(b)).detach().numpy(), expected)
    check_gradients(nn.functional.bilinear, [eager.tensor(a), eager.tensor(b), *layer.parameters()])
    with pytest.raises(ShapeError):
        layer(eager.tensor(b), eager.tensor(a))


def test_embedding():
    layer = nn.Embedding(5, 3, padding_idx=-1)
    assert layer.padding_idx == 4 and layer.weight[4].tolist() == [0, 0, 0]
    index = eager.tensor([[0, 4], [2, 0]])
    rows = layer(index)
    assert rows.shape == (2, 2, 3)
    np.testing.assert_array_equal(
        rows.detach().numpy(), layer.weight.detach().numpy()[[[0, 4], [2, 0]]]
    )
    rows.sum().backward()
    assert layer.weight.grad.sum(1).tolist() == [6, 0, 3, 0, 0]
    with pytest.raises(IndexOutOfRange):
        layer(eager.tensor([5]))
    with pytest.raises(ArgumentError):
        nn.Embedding(5, 3, padding_idx=5)
    frozen = nn.Embedding.from_pretrained(eager.ones(2, 2))
    assert not frozen.weight.requires_grad and frozen(eager.tensor(1)).tolist() == [1, 1]


def test_layer_norm():
    layer = nn.LayerNorm((3, 4), dtype=eager.float64)
    nn.init.uniform_(layer.weight)
    nn.init.uniform_(layer.bias)
    x = array(5, 3, 4)
    d = x - x.mean((1, 2), keepdims=True)
    expected = d / np.sqrt((d**2).mean((1, 2), keepdims=True) + layer.eps)
    expected = expected * layer.weight.detach().numpy() + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(eager.tensor(x)).detach().numpy(), expected)
    check_gradients(
        lambda x, w, b: nn.functional.layer_norm(x, (3, 4), w, b),
        [eager.tensor(x[:2]), *layer.parameters()],
    )
    assert nn.LayerNorm(3, elementwise_affine=False).weight is None
    with pytest.raises(ShapeError):
        layer(tensor(3, 5))


def test_rms_norm():
    x = array(5, 4)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3)
    layer = nn.RMSNorm(4, eps=1e-3, dtype=eager.float64)
    np.testing.assert_allclose(layer(eager.tensor(x)).detach().numpy(), expected)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout(p):
    layer = nn.Dropout(p)
    x = eager.ones(100, 100)
    eager.manual_seed(0)
    y = layer(x).numpy()
    kept = y != 0
    assert abs(kept.mean() - (1 - p)) < 0.02
    np.testing.assert_allclose(y[kept], 1 / (1 - p) if p < 1 else 0)
    eager.manual_seed(0)
    np.testing.assert_array_equal(layer(x).numpy(), y)
    assert layer.eval()(x) is x
    with pytest.raises(ArgumentError):
        nn.Dropout(1.5)


def test_flatten_unflatten_identity():
    x = tensor(2, 3, 4)
    assert nn.Flatten()(x).shape == (2, 12)
    assert nn.Flatten(0, 1)(x).shape == (6, 4)
    assert nn.Unflatten(1, (3, -1))(nn.Flatten()(x)).tolist() == x.tolist()
    assert nn.Unflatten(-1, (2, 2))(x).shape == (2, 3, 2, 2)
    with pytest.raises(ArgumentError):
        nn.Unflatten(1, (2, 2))(x)
    assert nn.Identity(54, unused=1)(x) is x
