"""`jit.compile` and gradients: results on the tape, whole training steps in one launch."""

import numpy as np
import pytest
from jit_reference import close

import eager
import jit
from eager import nn, optim

# --- gradients --------------------------------------------------------------------------------


def test_results_carry_one_node_on_the_tape(compile):
    w = eager.randn(3, 4, requires_grad=True)
    b = eager.randn(4, requires_grad=True)

    def fn(x):
        h = (x @ w + b).tanh()
        return h.sum(), h, x * 2

    f = compile(fn, warmup=0)
    x = eager.randn(5, 3)
    for _ in range(3):
        total, h, plain = f(x)
        (total * 2 + (h * h).sum()).backward()
        compiled = w.grad, b.grad
        w.grad = b.grad = None
        total_, h_, _ = fn(x)
        (total_ * 2 + (h_ * h_).sum()).backward()
        close(compiled[0], w.grad, 1e-4)
        close(compiled[1], b.grad, 1e-4)
        w.grad = b.grad = None
        assert not plain.requires_grad
    assert f.stats().compiled_calls == 2 and f.stats().backward_launches == 1


def test_gradients_of_arguments(compile):
    f = compile(lambda x, y: (x * y).exp(), warmup=0)
    for _ in range(3):
        x = eager.randn(3).requires_grad_()
        y = (x * 2).detach()
        f(x * 1.0, y).sum().backward()
        close(x.grad, y * (x * y).exp(), 1e-4)


def test_second_derivatives(compile):
    f = compile(lambda x: (x**3).sum(), warmup=0)
    for _ in range(3):
        x = eager.tensor([1.0, 2.0]).requires_grad_()
        (g,) = eager.autograd.grad(f(x), [x], create_graph=True)
        (h,) = eager.autograd.grad(g.sum(), [x])
        assert g.tolist() == [3, 12] and h.tolist() == [6, 12]


def test_an_input_changed_before_backward_is_noticed(compile):
    w = eager.ones(2, requires_grad=True)
    f = compile(lambda x: (x * w).sum(), warmup=0)
    x = eager.ones(2)
    f(x)
    out = f(x)
    x.add_(1)
    with pytest.raises(eager.errors.VersionError):
        out.backward()


def test_value_and_grad(compile):
    def loss(params, x, power=2):
        return ((x @ params["w"] + params["b"]) ** power).mean()

    f = compile(jit.value_and_grad(loss), warmup=0)
    params = {"w": eager.randn(3, 2), "b": eager.zeros(2)}
    for _ in range(3):
        x = eager.randn(4, 3)
        value, grads = f(params, x)
        expected, expected_grads = jit.value_and_grad(loss)(params, x)
        close(value, expected, 1e-5)
        for k in params:
            close(grads[k], expected_grads[k], 1e-5)
        assert not value.requires_grad
    assert f.stats().launches_per_call == 1 and f.stats().eager_ops_per_call == 0
    both = jit.grad(lambda a, b: ((a * b).sum(), a + b), (0, 1), has_aux=True)
    (ga, gb), aux = both(eager.ones(2), eager.full((2,), 3.0))
    assert ga.tolist() == [3, 3] and gb.tolist() == [1, 1] and aux.tolist() == [4, 4]


# --- training steps ---------------------------------------------------------------------------


def _training(make_optimizer, wrap, order="zero first", steps=6):
    eager.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = make_optimizer(model.parameters())
    loss_fn = nn.CrossEntropyLoss()

    def step(x, y):
        if order == "zero first":
            optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        if order == "zero last":
            optimizer.zero_grad()
        return loss

    step = wrap(step)
    rng = np.random.default_rng(0)
    losses = []
    for i in range(steps):
        x = eager.tensor(rng.standard_normal((10, 8)).astype("f"))
        y = eager.tensor(rng.integers(0, 4, 10))
        if i == 4:
            optimizer.param_groups[0]["lr"] = 0.02
        losses.append(step(x, y).item())
    grads = [p.grad for p in model.parameters()]
    return losses, [p.detach().numpy().copy() for p in model.parameters()], grads, step


OPTIMIZERS = {
    "sgd": lambda ps: optim.SGD(ps, lr=0.1),
    "momentum": lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda ps: optim.Adam(ps, lr=0.01),
    "adamw": lambda ps: optim.AdamW(ps, lr=0.01),
}


@pytest.mark.parametrize("order", ["zero first", "zero last"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_step_is_one_launch(compile, name, order):
    losses, params, grads, _ = _training(OPTIMIZERS[name], lambda f: f, order)
    losses_, params_, grads_, step = _training(OPTIMIZERS[name], compile, order)
    np.testing.assert_allclose(losses, losses_, rtol=1e-4)
    for a, b in zip(params, params_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    for a, b in zip(grads, grads_, strict=True):
        assert (a is None) == (b is None) == (order == "zero last")
        if a is not None:
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-5)
    stats = step.stats()
    assert stats.traces == 1 and stats.compiled_calls == 4, stats
    assert stats.launches_per_call == 1 and stats.eager_ops_per_call == 0, step.graph()


class _Square(eager.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True, dropout=0.2)
        self.norm = nn.LayerNorm(6)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        hidden, _ = self.lstm(x)
        return self.head(self.drop(self.norm(hidden[:, -1])))


@pytest.mark.parametrize("variant", ["plain", "function", "hook", "penalty", "clip", "embedding"])
def test_training_steps_of_many_kinds(compile, variant):
    def train(wrap):
        eager.manual_seed(0)
        embedding = variant == "embedding"
        model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3)) if embedding else _Net()
        optimizer = optim.AdamW(model.parameters(), lr=0.01)
        scheduler = optim.lr_scheduler.StepLR(optimizer, 2)
        if variant == "hook":
            next(iter(model.parameters())).register_hook(lambda g: g * 0.5)

        def step(x, y):
            optimizer.zero_grad()
            out = model(x)
            if variant == "function":
                out = _Square.apply(out)
            loss = nn.functional.cross_entropy(out, y)
            if variant == "penalty":
                loss = loss + sum((p * p).sum() for p in model.parameters()) * 0.01
            loss.backward()
            if variant == "clip":
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            return loss, out.softmax(-1)

        step = wrap(step)
        rng = np.random.default_rng(0)
        results = []
        for _ in range(5):
            x = rng.integers(0, 10, 5) if embedding else rng.standard_normal((5, 3, 4), "f")
            loss, probabilities = step(eager.tensor(x), eager.tensor(rng.integers(0, 3, 5)))
            results += [loss, probabilities]
            scheduler.step()
        return results, step

    expected, _ = train(lambda f: f)
    found, step = train(compile)
    for a, b in zip(found, expected, strict=True):
        close(a, b, 1e-4)
    stats = step.stats()
    assert stats.traces == 1 and stats.compiled_calls == 3, stats
    # The gradient of an embedding is a scatter, which runs eagerly between two programs.
    expected_pieces = (2, 1) if variant == "embedding" else (1, 0)
    assert (stats.launches_per_call, stats.eager_ops_per_call) == expected_pieces


def test_gradient_accumulation_over_compiled_calls(compile):
    model = nn.Linear(3, 2)

    def step(x):
        model(x).square().sum().backward()

    f = compile(step, warmup=0)
    xs = [eager.randn(4, 3) for _ in range(5)]
    for x in xs:
        f(x)
    compiled = model.weight.grad.numpy().copy()
    model.weight.grad = model.bias.grad = None
    for x in xs:
        step(x)
    np.testing.assert_allclose(compiled, model.weight.grad.numpy(), rtol=1e-4)
    assert f.stats().traces == 2  # without and with gradients to add to
