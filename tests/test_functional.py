"""eager.nn.functional against NumPy, and its gradients against finite differences."""

import math

import numpy as np
import pytest
from finite_differences import check_gradients

import eager
from eager import nn
from eager.errors import ArgumentError, DTypeError, IndexOutOfRange, ShapeError
from eager.nn import functional as F

rng = np.random.default_rng(0)
X = np.concatenate([rng.uniform(-4, 4, 40), [0.0, 30.0, -30.0]])
# Kinks are at 0, ±1, ±3 and 6; finite differences stay away from them.
SMOOTH = eager.tensor(np.array([-3.7, -2.2, -0.6, 0.4, 1.7, 2.6, 4.2]))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


erf = np.vectorize(math.erf)
ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "celu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "gelu": lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))),
    "silu": lambda x: x * sigmoid(x),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "softplus": softplus,
    "logsigmoid": lambda x: -softplus(-x),
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "tanhshrink": lambda x: x - np.tanh(x),
}
MODULES = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU,
    "celu": nn.CELU, "selu": nn.SELU, "gelu": nn.GELU, "silu": nn.SiLU, "mish": nn.Mish,
    "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "softplus": nn.Softplus, "logsigmoid": nn.LogSigmoid,
    "hardtanh": nn.Hardtanh, "hardsigmoid": nn.Hardsigmoid, "hardswish": nn.Hardswish,
    "softsign": nn.Softsign, "tanhshrink": nn.Tanhshrink,
}  # fmt: skip
INPLACE = [
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "silu", "mish", "hardtanh",
    "hardsigmoid", "hardswish",
]  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    fn = getattr(F, name)
    expected = ACTIVATIONS[name](X)
    np.testing.assert_allclose(fn(eager.tensor(X)).numpy(), expected, rtol=1e-9, atol=1e-12)
    module = MODULES[name]()
    np.testing.assert_array_equal(module(eager.tensor(X)).numpy(), fn(eager.tensor(X)).numpy())
    assert repr(module).startswith(type(module).__name__ + "(")
    check_gradients(fn, [SMOOTH])
    single = fn(eager.tensor(X, dtype=eager.float32))
    assert single.dtype == eager.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_gradients_are_finite_far_out(name):
    x = eager.tensor([-1e4, 1e4], requires_grad=True)
    getattr(F, name)(x).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize("name,kinks", [
    ("relu", [0]), ("relu6", [0, 6]), ("hardtanh", [-1, 1]), ("hardsigmoid", [-3, 3]),
])  # fmt: skip
def test_slope_is_zero_at_kinks(name, kinks):
    x = eager.tensor(kinks, dtype=eager.float64, requires_grad=True)
    getattr(F, name)(x).sum().backward()
    assert x.grad.tolist() == [0] * len(kinks)


@pytest.mark.parametrize("name", INPLACE)
def test_inplace_activations(name):
    fn = getattr(F, name)
    plain, leaf = (SMOOTH.clone().requires_grad_() for _ in range(2))
    (fn(plain * 1) * 2).sum().backward()
    x = leaf * 1
    y = fn(x, inplace=True)
    assert y is x
    (y * 2).sum().backward()
    np.testing.assert_allclose(leaf.grad.numpy(), plain.grad.numpy())


def test_activations_with_options():
    x = eager.tensor(X)
    np.testing.assert_allclose(F.leaky_relu(x, 0.2).numpy(), np.where(X > 0, X, 0.2 * X))
    np.testing.assert_allclose(F.elu(x, 2.0).numpy(), np.where(X > 0, X, 2 * np.expm1(X)))
    np.testing.assert_allclose(F.celu(x, 2.0).numpy(), np.where(X > 0, X, 2 * np.expm1(X / 2)))
    np.testing.assert_allclose(F.softplus(x, 2.0).numpy(), softplus(2 * X) / 2, rtol=1e-6)
    np.testing.assert_allclose(F.hardtanh(x, -2, 3).numpy(), np.clip(X, -2, 3))
    np.testing.assert_allclose(F.threshold(x, 0.5, -7).numpy(), np.where(X > 0.5, X, -7))
    tanh_gelu = 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3)))
    np.testing.assert_allclose(F.gelu(x, approximate="tanh").numpy(), tanh_gelu, atol=1e-12)
    y = rng.normal(size=(2, 3, 4))
    slopes = np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(
        F.prelu(eager.tensor(y), eager.tensor(slopes)).numpy(),
        np.where(y > 0, y, y * slopes[:, None]),
    )
    np.testing.assert_allclose(F.glu(eager.tensor(y)).numpy(), y[..., :2] * sigmoid(y[..., 2:]))
    assert nn.PReLU(3)(eager.tensor(y, dtype=eager.float32)).shape == (2, 3, 4)
    assert nn.GLU(2)(eager.tensor(y)).shape == (2, 3, 2)
    assert nn.Threshold(0.5, -7)(x).min().item() == -7


def log_softmax(x, axis):
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax(dim):
    x = rng.normal(size=(3, 4)) * 10
    expected = log_softmax(x, dim)
    t = eager.tensor(x)
    np.testing.assert_allclose(F.log_softmax(t, dim).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(F.softmax(t, dim).numpy(), np.exp(expected), atol=1e-12)
    np.testing.assert_allclose(F.softmin(-t, dim).numpy(), np.exp(expected), atol=1e-12)
    assert nn.Softmax(dim)(t).tolist() == F.softmax(t, dim).tolist()
    assert nn.LogSoftmax(dim)(t).tolist() == F.log_softmax(t, dim).tolist()
    check_gradients(lambda x: F.log_softmax(x, dim), [t])
    check_gradients(lambda x: F.softmax(x, dim), [t], atol=1e-6)


def test_softmax_default_dim():
    assert F.softmax(eager.zeros(2, 4))[0, 0].item() == 0.25
    assert F.softmax(eager.zeros(2, 4, 4))[0, 0, 0].item() == 0.5


# --- classification losses ----------------------------------------------------------------------


def reduced(loss, reduction, weights=None):
    if reduction == "none":
        return loss
    return (
        loss.sum()
        if reduction == "sum"
        else loss.sum() / (loss.size if weights is None else weights.sum())
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tail", [(), (2,)])
def test_cross_entropy(reduction, smoothing, weighted, tail):
    n, c = 5, 4
    x = rng.normal(size=(n, c, *tail))
    target = rng.integers(0, c, (n, *tail))
    target.reshape(-1)[1] = 2
    ignore = 2
    w = rng.uniform(0.5, 2, c) if weighted else np.ones(c)
    logp = np.moveaxis(log_softmax(x, 1), 1, -1)
    kept = target != ignore
    picked = -np.take_along_axis(logp, target[..., None], -1)[..., 0] * w[target] * kept
    smooth = -(logp * w).sum(-1) * kept
    scale = w[target] * kept
    expected = (1 - smoothing) * reduced(picked, reduction, scale)
    expected = expected + smoothing / c * reduced(smooth, reduction, scale)
    weight = eager.tensor(w) if weighted else None
    loss = nn.CrossEntropyLoss(weight, ignore, reduction, smoothing)
    got = loss(eager.tensor(x), eager.tensor(target))
    np.testing.assert_allclose(got.numpy(), expected)
    check_gradients(lambda x: loss(x, eager.tensor(target)), [eager.tensor(x)])
    if smoothing == 0:
        nll = nn.NLLLoss(weight, ignore, reduction)
        got = nll(F.log_softmax(eager.tensor(x), 1), eager.tensor(target))
        np.testing.assert_allclose(got.numpy(), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_with_probabilities(reduction, smoothing):
    x = rng.normal(size=(5, 4, 3))
    p = rng.dirichlet(np.ones(4), size=(5, 3)).transpose(0, 2, 1)
    w = rng.uniform(0.5, 2, 4)
    q = p * (1 - smoothing) + smoothing / 4
    expected = reduced(-(log_softmax(x, 1) * q * w[:, None]).sum(1), reduction)
    got = F.cross_entropy(
        eager.tensor(x), eager.tensor(p), eager.tensor(w), reduction=reduction,
        label_smoothing=smoothing,
    )  # fmt: skip
    np.testing.assert_allclose(got.numpy(), expected)
    check_gradients(lambda x, p: F.cross_entropy(x, p), [eager.tensor(x), eager.tensor(p)])


def test_cross_entropy_of_one_sample_and_of_extremes():
    x = eager.tensor([1000.0, 0.0, -1000.0], requires_grad=True)
    loss = F.cross_entropy(x, eager.tensor(0))
    assert loss.item() == 0
    loss = F.cross_entropy(x, eager.tensor(2))
    loss.backward()
    assert loss.item() == 2000 and x.grad.tolist() == [1, 0, -1]
    all_ignored = F.cross_entropy(eager.ones(2, 3), eager.tensor([-100, -100]))
    assert math.isnan(all_ignored.item())


def test_classification_errors():
    x = eager.ones(2, 3)
    with pytest.raises(IndexOutOfRange):
        F.cross_entropy(x, eager.tensor([0, 3]))
    with pytest.raises(IndexOutOfRange):
        F.cross_entropy(x, eager.tensor([0, -1]))
    with pytest.raises(ShapeError, match="cross_entropy"):
        F.cross_entropy(x, eager.tensor([0, 1, 2]))
    with pytest.raises(ShapeError):
        F.cross_entropy(x, eager.ones(2, 4))
    with pytest.raises(DTypeError):
        F.nll_loss(x, eager.ones(2))
    with pytest.raises(ShapeError, match="weight"):
        F.cross_entropy(x, eager.tensor([0, 1]), eager.ones(2))
    with pytest.raises(ArgumentError):
        F.cross_entropy(x, eager.tensor([0, 1]), label_smoothing=2.0)
    with pytest.raises(ArgumentError, match="reduction"):
        F.cross_entropy(x, eager.tensor([0, 1]), reduction="median")


# --- other losses -------------------------------------------------------------------------------


def huber(d, delta):
    return np.where(d < delta, d * d / 2, delta * (d - delta / 2))


REGRESSION = {
    "mse_loss": (nn.MSELoss, lambda d: d * d),
    "l1_loss": (nn.L1Loss, np.abs),
    "smooth_l1_loss": (nn.SmoothL1Loss, lambda d: huber(np.abs(d), 1)),
    "huber_loss": (nn.HuberLoss, lambda d: huber(np.abs(d), 1)),
}


@pytest.mark.parametrize("name", REGRESSION)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_regression_losses(name, reduction):
    module, fn = REGRESSION[name]
    a, b = rng.normal(size=(2, 4, 5)) * 2
    loss = module(reduction=reduction)
    got = loss(eager.tensor(a), eager.tensor(b))
    np.testing.assert_allclose(got.numpy(), reduced(fn(a - b), reduction))
    check_gradients(loss, [eager.tensor(a), eager.tensor(b)])
    with pytest.raises(ShapeError, match=name):
        loss(eager.ones(2), eager.ones(3))


def test_regression_options():
    a, b = rng.normal(size=(2, 20)) * 2
    x, y = eager.tensor(a), eager.tensor(b)
    d = np.abs(a - b)
    np.testing.assert_allclose(
        F.smooth_l1_loss(x, y, beta=0.5).item(), (huber(d, 0.5) / 0.5).mean()
    )
    np.testing.assert_allclose(F.huber_loss(x, y, delta=0.5).item(), huber(d, 0.5).mean())
    np.testing.assert_allclose(F.smooth_l1_loss(x, y, beta=0).item(), d.mean())
    with pytest.raises(ArgumentError):
        F.smooth_l1_loss(x, y, beta=-1)
    with pytest.raises(ArgumentError):
        F.huber_loss(x, y, delta=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_cross_entropy(reduction):
    p, t, w = rng.uniform(0.05, 0.95, size=(3, 4, 5))
    each = -(t * np.log(p) + (1 - t) * np.log(1 - p)) * w
    tensors = [eager.tensor(v) for v in (p, t, w)]
    got = nn.BCELoss(tensors[2], reduction)(*tensors[:2])
    np.testing.assert_allclose(got.numpy(), reduced(each, reduction))
    check_gradients(lambda p, t: F.binary_cross_entropy(p, t, tensors[2]), tensors[:2])
    ends = F.binary_cross_entropy(
        eager.tensor([0.0, 1.0]), eager.tensor([1.0, 1.0]), reduction="none"
    )
    assert ends.tolist() == [100, 0]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_cross_entropy_with_logits(reduction):
    x, t, w = rng.normal(size=(3, 4, 5))
    t, w, pos = sigmoid(t), np.abs(w), rng.uniform(0.5, 2, 5)
    each = -(pos * t * np.log(sigmoid(x)) + (1 - t) * np.log(1 - sigmoid(x))) * w
    loss = nn.BCEWithLogitsLoss(eager.tensor(w), reduction, eager.tensor(pos))
    got = loss(eager.tensor(x), eager.tensor(t))
    np.testing.assert_allclose(got.numpy(), reduced(each, reduction))
    check_gradients(loss, [eager.tensor(x), eager.tensor(t)])
    x = eager.tensor([0.0, 1000.0, -1000.0], requires_grad=True)
    F.binary_cross_entropy_with_logits(x, eager.tensor([0.0, 1, 1]), reduction="sum").backward()
    assert x.grad.tolist() == [0.5, 0, -1]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batchmean"])
def test_kl_div(reduction):
    p, q = (rng.dirichlet(np.ones(4), size=3) for _ in range(2))
    each = q * (np.log(q) - np.log(p))
    expected = each.sum() / 3 if reduction == "batchmean" else reduced(each, reduction)
    x, t = eager.tensor(np.log(p)), eager.tensor(q)
    np.testing.assert_allclose(F.kl_div(x, t, reduction).numpy(), expected)
    np.testing.assert_allclose(nn.KLDivLoss(reduction, True)(x, t.log()).numpy(), expected)
    check_gradients(lambda x, t: F.kl_div(x, t, reduction), [x, t])
    zero = eager.tensor([0.0, 1.0], requires_grad=True)
    loss = F.kl_div(eager.tensor([-5.0, 0.0]), zero, "sum")
    loss.backward()
    assert loss.item() == 0 and np.isfinite(zero.grad.numpy()).all()


# --- the rest -----------------------------------------------------------------------------------


def test_distances():
    a, b = rng.normal(size=(2, 3, 5))
    x, y = eager.tensor(a), eager.tensor(b)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / (norms[0] * norms[1])
    np.testing.assert_allclose(F.cosine_similarity(x, y).numpy(), cosine)
    np.testing.assert_allclose(nn.CosineSimilarity(1)(x, y).numpy(), cosine)
    np.testing.assert_allclose(F.normalize(x).numpy(), a / norms[0][:, None])
    np.testing.assert_allclose(F.normalize(x, 1.0, 0).numpy(), a / np.abs(a).sum(0))
    np.testing.assert_allclose(
        F.pairwise_distance(x, y, eps=0, p=math.inf).numpy(), np.abs(a - b).max(1)
    )
    np.testing.assert_allclose(
        F.pairwise_distance(x, y, eps=0).numpy(), np.linalg.norm(a - b, axis=1)
    )
    check_gradients(F.cosine_similarity, [x, y])


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_attention(mask):
    q, k, v = rng.normal(size=(3, 2, 4, 5))
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(5)
    given = None
    if mask == "causal":
        scores = np.where(np.tril(np.ones((4, 4))) > 0, scores, -np.inf)
    elif mask == "bool":
        allowed = rng.random((4, 4)) < 0.7
        allowed[:, 0] = True
        scores, given = np.where(allowed, scores, -np.inf), eager.tensor(allowed)
    elif mask == "float":
        extra = rng.normal(size=(4, 4))
        scores, given = scores + extra, eager.tensor(extra)
    expected = np.exp(log_softmax(scores, -1)) @ v
    tensors = [eager.tensor(x) for x in (q, k, v)]

    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, given, is_causal=mask == "causal")

    np.testing.assert_allclose(attend(*tensors).numpy(), expected)
    check_gradients(attend, tensors)


def test_one_hot_and_embedding_options():
    assert F.one_hot(eager.tensor([0, 2])).tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(ArgumentError):
        F.embedding(eager.tensor([0]), eager.ones(2, 2), max_norm=1.0)
    with pytest.raises(ArgumentError):
        F.scaled_dot_product_attention(*[eager.ones(2, 2)] * 3, eager.ones(2, 2), is_causal=True)


def test_dropout_with_generator():
    x = eager.ones(50)
    first, second = (
        F.dropout(x, 0.5, generator=eager.Generator().manual_seed(1)).tolist() for _ in range(2)
    )
    assert first == second and 0.0 in first and 2.0 in first
