"""Gradients computed into memory given beforehand: the same bits, and no copy."""

import numpy as np
import pytest

import eager
from eager import nn
from eager.errors import AutogradError, DTypeError, EagerError, ShapeError


class Tied(nn.Module):
    """One weight for the embedding and for the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(10, 8), nn.LayerNorm(8)
        self.hidden, self.output = nn.Linear(8, 8), nn.Linear(8, 10, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, x):
        return self.output(self.norm(self.hidden(self.embedding(x))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(5, 6)

    def forward(self, x):
        return self.layer(x)[0]


class Product(nn.Module):
    """x @ w, without a transposition between."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(eager.randn(shape))

    def forward(self, x):
        return x @ self.w


ROWS = eager.tensor([1, 2, 3, 1])
CASES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), (16, 8)),
    "batched": (lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), (3, 16, 8)),
    "square": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), (8, 8)),
    "one output": (lambda: nn.Linear(8, 1), (8, 8)),
    "one row": (lambda: nn.Linear(8, 4), (1, 8)),
    "norm": (lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), (8, 8)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8)), ROWS),
    "tied": (Tied, ROWS),
    "product": (lambda: Product(8, 8), (8, 8)),
    "batched product": (lambda: Product(3, 8, 4), (3, 5, 8)),
    "float64": (lambda: nn.Linear(8, 4).double(), (6, 8)),
    "bfloat16": (lambda: nn.Linear(8, 4).to(eager.bfloat16), (6, 8)),
}


def gradients(make, x, buffers: bool):
    """Of three steps of two backwards each; how often they were computed in place and copied."""
    eager.manual_seed(0)
    model = make()
    params = list(model.parameters())
    if not isinstance(x, eager.Tensor):
        x = eager.tensor(np.random.default_rng(0).standard_normal(x)).to(params[0].dtype)
    views = []
    if buffers:
        bucket = eager.zeros(sum(p.numel() + 16 for p in params), dtype=params[0].dtype)
        at = 0
        for p in params:
            views.append(bucket[at : at + p.numel()].reshape(p.shape))
            p._set_grad_buffer(views[-1])
            at += p.numel() + 16
    found = []
    for _ in range(3):
        for p in params:
            p.grad = None
        for _ in range(2):
            (model(x) ** 2).mean().backward()
        found += [p.grad.float().numpy().copy() for p in params]
        assert all(p.grad is view for p, view in zip(params, views, strict=bool(views)))
    counts = {n: p._grad_buffer_counts() for n, p in model.named_parameters()}
    return found, counts


@pytest.mark.parametrize("case", CASES)
def test_layers(case):
    make, x = CASES[case]
    plain, _ = gradients(make, x, False)
    placed, counts = gradients(make, x, True)
    assert all(np.array_equal(a, b) for a, b in zip(plain, placed, strict=True))
    assert set(counts.values()) == {(3, 0)}, counts


def test_a_recurrent_layer_copies_biases_only():
    """Both biases get the gradient of their sum, which is one tensor."""
    plain, _ = gradients(Recurrent, (7, 3, 5), False)
    placed, counts = gradients(Recurrent, (7, 3, 5), True)
    assert all(np.array_equal(a, b) for a, b in zip(plain, placed, strict=True))
    assert all(c == ((0, 3) if "bias" in n else (3, 0)) for n, c in counts.items()), counts


def test_hooks_tell_when_a_gradient_is_there():
    layer = nn.Linear(3, 2)
    view = eager.zeros(2, 3)
    layer.weight._set_grad_buffer(view)
    seen = []
    handle = layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad is view))
    kept = []
    layer.weight.register_hook(kept.append)
    x = eager.randn(4, 3)
    layer(x).sum().backward()
    first = layer.weight.grad.tolist()
    layer.weight.grad = None
    layer(x * 2).sum().backward()
    assert seen == [True, True] and kept[0].tolist() == first  # not overwritten
    handle.remove()
    layer(x).sum().backward()
    assert len(seen) == 2
    with pytest.raises(AutogradError, match="not a leaf"):
        (layer.weight * 2).register_post_accumulate_grad_hook(seen.append)


def test_differentiable_gradients_stay_outside():
    w = nn.Parameter(eager.tensor([1.0, 2.0]))
    view = eager.full((2,), 7.0)
    w._set_grad_buffer(view)
    (w**3).sum().backward(create_graph=True)
    assert w.grad.requires_grad and view.tolist() == [7, 7]
    (second,) = eager.autograd.grad(w.grad.sum(), w)
    assert second.tolist() == [6, 12] and view.tolist() == [7, 7]
    w.grad = None
    (found,) = eager.autograd.grad((w**2).sum(), w)
    assert found.tolist() == [2, 4] and w.grad is None and view.tolist() == [7, 7]


def test_what_does_not_fit_is_refused():
    w = nn.Parameter(eager.zeros(2, 3))
    with pytest.raises(ShapeError):
        w._set_grad_buffer(eager.zeros(3, 2))
    with pytest.raises(DTypeError):
        w._set_grad_buffer(eager.zeros(2, 3, dtype=eager.float64))
    with pytest.raises(EagerError, match="block of memory"):
        w._set_grad_buffer(eager.zeros(2, 6)[:, ::2])
    with pytest.raises(AutogradError):
        eager.zeros(2)._set_grad_buffer(eager.zeros(2))
    view = eager.zeros(2, 3)
    w._set_grad_buffer(view)
    assert w._grad_buffer() is view
    w._set_grad_buffer(None)
    assert w._grad_buffer() is None and w._grad_buffer_counts() == (0, 0)
