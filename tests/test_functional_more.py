"""Losses of margins, normalisations, padding, windows, special functions and linalg, against
formulas in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import eager
from eager import linalg, special
from eager.errors import ArgumentError, ShapeError
from eager.nn import functional as F
from eager.signal import windows

RNG = np.random.default_rng(0)


def t(x: Any) -> eager.Tensor:
    return eager.from_numpy(np.array(x))


def close(ours: eager.Tensor, expected: Any) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


# --- losses --------------------------------------------------------------------------------------

x, y = RNG.normal(size=(2, 4, 5))
signs = np.where(RNG.random((4, 5)) < 0.5, 1.0, -1.0)


def test_losses_of_pairs() -> None:
    close(
        F.margin_ranking_loss(t(x), t(y), t(signs), 0.1),
        np.maximum(0, -signs * (x - y) + 0.1).mean(),
    )
    close(
        F.hinge_embedding_loss(t(x), t(signs), reduction="none"),
        np.where(signs == 1, x, np.maximum(0, 1 - x)),
    )
    close(F.soft_margin_loss(t(x), t(signs)), np.log1p(np.exp(-signs * x)).mean())
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    side = np.array([1.0, -1.0, 1.0, -1.0])
    close(
        F.cosine_embedding_loss(t(x), t(y), t(side), 0.2, reduction="none"),
        np.where(side == 1, 1 - cosine, np.maximum(0, cosine - 0.2)),
    )
    near = np.linalg.norm(x - y + 1e-6, axis=1)
    far = np.linalg.norm(x - 2 * y + 1e-6, axis=1)
    close(
        F.triplet_margin_loss(t(x), t(y), t(2 * y), reduction="none"),
        np.maximum(0, near - far + 1),
    )


def test_losses_of_classes() -> None:
    target = np.array([0, 4, 2, 2])
    expected = [
        sum(max(0, 1 - x[i, k] + x[i, j]) for j in range(5) if j != k) / 5
        for i, k in enumerate(target)
    ]
    close(F.multi_margin_loss(t(x), t(target), reduction="none"), expected)
    labels = np.array([[1, 3, -1, 0, 0], [0, -1, 2, 2, 2], [-1] * 5, [0, 1, 2, 3, 4]])
    expected = []
    for row, given in zip(x, labels, strict=True):
        own = list(given[: np.argmin(given)] if -1 in given else given)
        expected.append(
            sum(max(0, 1 - row[a] + row[b]) for a in own for b in range(5) if b not in own) / 5
        )
    close(F.multilabel_margin_loss(t(x), t(labels), reduction="none"), expected)
    chosen = (signs + 1) / 2
    log = -np.log1p(np.exp(-x)), -np.log1p(np.exp(x))
    close(
        F.multilabel_soft_margin_loss(t(x), t(chosen), reduction="none"),
        -(chosen * log[0] + (1 - chosen) * log[1]).mean(1),
    )


def test_losses_of_distributions() -> None:
    count = RNG.integers(0, 5, (4, 5)).astype(float)
    stirling = np.zeros_like(count)
    big = count > 1
    stirling[big] = (
        count[big] * np.log(count[big]) - count[big] + np.log(2 * np.pi * count[big]) / 2
    )
    close(F.poisson_nll_loss(t(x), t(count), reduction="none"), np.exp(x) - count * x)
    close(
        F.poisson_nll_loss(t(np.exp(x)), t(count), False, True, 0.0, "none"),
        np.exp(x) - count * x + stirling,
    )
    var = RNG.random((4, 5)) + 0.1
    close(F.gaussian_nll_loss(t(x), t(y), t(var)), (np.log(var) + (x - y) ** 2 / var).mean() / 2)
    # the gradient of a variance below the limit is that at the limit
    small = eager.tensor([1e-9], requires_grad=True)
    F.gaussian_nll_loss(eager.zeros(1), eager.zeros(1), small, eps=0.5).backward()
    assert small.grad is not None
    assert small.grad.item() == pytest.approx(1.0)


# --- normalisation, padding, pixels --------------------------------------------------------------

images = RNG.normal(size=(3, 4, 5, 2))


def normal(z: Any, axes: tuple[int, ...]) -> Any:
    return (z - z.mean(axes, keepdims=True)) / np.sqrt(z.var(axes, keepdims=True) + 1e-5)


def test_normalisations() -> None:
    weight, bias = RNG.normal(size=(2, 4))
    per_channel = (slice(None), None, None)
    mean, var = eager.zeros(4, dtype=eager.float64), eager.ones(4, dtype=eager.float64)
    result = F.batch_norm(t(images), mean, var, t(weight), t(bias), training=True, momentum=0.2)
    close(result, normal(images, (0, 2, 3)) * weight[per_channel] + bias[per_channel])
    close(mean, 0.2 * images.mean((0, 2, 3)))
    close(var, 0.8 + 0.2 * images.var((0, 2, 3), ddof=1))
    still = F.batch_norm(t(images), t(bias), t(weight**2))
    moved = (images - bias[per_channel]) / np.sqrt(weight[per_channel] ** 2 + 1e-5)
    close(still, moved)
    close(F.instance_norm(t(images)), normal(images, (2, 3)))
    groups = normal(images.reshape(3, 2, 20), (2,)).reshape(images.shape)
    close(F.group_norm(t(images), 2, t(weight)), groups * weight[per_channel])
    with pytest.raises(ArgumentError, match="the groups do not divide the channels"):
        F.group_norm(t(images), 3)
    with pytest.raises(ArgumentError, match="no statistics"):
        F.batch_norm(t(images), None, None)
    with pytest.raises(ArgumentError, match="has no variance"):
        F.batch_norm(eager.ones(1, 3), None, None, training=True)


@pytest.mark.parametrize(
    ("mode", "numpy_mode"), [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")]
)
def test_padding(mode: str, numpy_mode: Any) -> None:
    widths = [(0, 0), (0, 0), (1, 2), (1, 0)]
    close(F.pad(t(images), (1, 0, 1, 2), mode), np.pad(images, widths, numpy_mode))


def test_constant_padding_may_cut() -> None:
    close(F.pad(t(images), (-1, 1), value=2.0)[..., 0], images[..., 1])
    with pytest.raises(ShapeError, match="wider than what it mirrors"):
        F.pad(t(images), (2, 0), "reflect")


def test_pixel_shuffles_are_inverse() -> None:
    wide = F.pixel_shuffle(t(images), 2)
    assert tuple(wide.shape) == (3, 1, 10, 4)
    assert wide[0, 0, 1, 0].item() == images[0, 2, 0, 0]
    close(F.pixel_unshuffle(wide, 2), images)
    with pytest.raises(ShapeError, match=r"^pixel_shuffle"):
        F.pixel_shuffle(t(images), 3)


def test_dropout_of_channels() -> None:
    eager.manual_seed(0)
    kept = (F.dropout2d(eager.ones(8, 16, 3, 3), 0.5) != 0).numpy().reshape(128, 9)
    assert set(kept.sum(1)) == {0, 9}
    assert F.dropout1d(t(images[0]), 0.5, training=False).tolist() == images[0].tolist()


def test_shrinking() -> None:
    close(F.hardshrink(t(x)), np.where(np.abs(x) > 0.5, x, 0))
    close(F.softshrink(t(x)), np.sign(x) * np.maximum(np.abs(x) - 0.5, 0))


# --- windows, special functions, linear algebra --------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8])
def test_windows(n: int) -> None:
    for name in ("hann", "hamming", "blackman", "bartlett"):
        reference = getattr(np, {"hann": "hanning"}.get(name, name))
        fn = getattr(windows, name)
        np.testing.assert_allclose(fn(n, dtype=eager.float64).numpy(), reference(n), atol=1e-15)
        periodic = fn(n, sym=False, dtype=eager.float64).numpy()
        expected = reference(n + 1)[:n] if n != 1 else np.ones(1)
        np.testing.assert_allclose(periodic, expected, atol=1e-15)


def test_other_windows() -> None:
    place = np.arange(6)
    close(windows.cosine(6, dtype=eager.float64), np.sin(np.pi * (place + 0.5) / 6))
    close(windows.exponential(6, tau=2, dtype=eager.float64), np.exp(-np.abs(place - 2.5) / 2))
    close(windows.gaussian(6, std=2, dtype=eager.float64), np.exp(-(((place - 2.5) / 2) ** 2) / 2))
    assert windows.nuttall(9).numpy().argmax() == 4
    with pytest.raises(ArgumentError, match="the length is negative"):
        windows.hann(-1)
    with pytest.raises(ArgumentError, match="tau is not positive"):
        windows.exponential(3, tau=0)


def test_special() -> None:
    p = np.array([0.0, 0.5, 1.0])
    close(special.entr(t(p)), [0.0, 0.5 * np.log(2), 0.0])
    close(special.xlog1py(t(p), t([-1.0, 1.0, 2.0])), [0.0, 0.5 * np.log(2), np.log(3)])
    assert special.entr(eager.tensor([-1.0])).item() == -np.inf


def test_linalg() -> None:
    m = RNG.normal(size=(3, 3))
    close(linalg.norm(t(m)), np.linalg.norm(m))
    for order in ("fro", 1, -1, np.inf, -np.inf):
        close(linalg.matrix_norm(t(m), order), np.linalg.norm(m, order))
    close(linalg.vector_norm(t(m), 3, 1), np.linalg.norm(m, 3, 1))
    close(linalg.multi_dot([t(m[0]), t(m), t(m[1])]), m[0] @ m @ m[1])
    close(linalg.multi_dot([t(m), t(m), t(m[1])]), m @ m @ m[1])
    close(linalg.vecdot(t(m), t(m)), (m * m).sum(1))
    close(linalg.matrix_power(t(m), 3), m @ m @ m)
    close(linalg.diagonal(t(m)), np.diagonal(m))
    with pytest.raises(ArgumentError, match="this norm is not supported"):
        linalg.matrix_norm(t(m), "nuc")
