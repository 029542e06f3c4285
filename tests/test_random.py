"""Random streams: the generator's known answers, reproducibility, and distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import eager
from eager.errors import ArgumentError, DTypeError


def test_known_answers() -> None:
    """Words 0 and 1 of the test vector published with Philox 4x32-10 for key and counter 0."""
    gen = eager.Generator().manual_seed(0)
    words = eager.rand(1, generator=gen, dtype=eager.float64).item() * 2**53
    assert int(words) == (0x6627E8D5 << 21) ^ (0xE169C58D >> 11)
    assert eager.Generator().manual_seed(2**64 - 1).initial_seed() == 2**64 - 1


def test_the_same_seed_gives_the_same_numbers() -> None:
    eager.manual_seed(5)
    first = [eager.rand(3), eager.randn(2, 2), eager.randint(0, 9, (4,)), eager.randperm(5)]
    eager.manual_seed(5)
    second = [eager.rand(3), eager.randn(2, 2), eager.randint(0, 9, (4,)), eager.randperm(5)]
    for a, b in zip(first, second, strict=True):
        assert eager.equal(a, b)
    assert not eager.equal(eager.rand(3), first[0])
    assert eager.initial_seed() == 5


def test_a_stream_does_not_depend_on_how_it_is_cut() -> None:
    one = eager.rand(10, generator=eager.Generator().manual_seed(1))
    gen = eager.Generator().manual_seed(1)
    parts = eager.cat([eager.rand(4, generator=gen), eager.rand(6, generator=gen)])
    assert eager.equal(one, parts)


def test_a_stream_does_not_depend_on_the_number_of_threads() -> None:
    before = eager.get_num_threads()
    try:
        draws = []
        for threads in (1, 2):
            eager.set_num_threads(threads)
            draws.append(eager.rand(300_000, generator=eager.Generator().manual_seed(3)))
        assert eager.equal(*draws)
    finally:
        eager.set_num_threads(before)


def test_state() -> None:
    gen = eager.Generator()
    eager.rand(7, generator=gen)
    state = gen.get_state()
    assert state.dtype == eager.int64
    a = eager.randn(3, generator=gen)
    gen.set_state(state)
    assert eager.equal(a, eager.randn(3, generator=gen))
    with pytest.raises(eager.errors.ShapeError, match=r"^set_state: "):
        gen.set_state(eager.zeros(3))
    assert gen.seed() == gen.initial_seed()
    with pytest.raises(ArgumentError, match=r"^manual_seed: "):
        gen.manual_seed(2**64)


N = 200_000


@pytest.mark.parametrize("dtype", [eager.float32, eager.float64])
def test_uniform(dtype: Any) -> None:
    x = eager.rand(N, generator=eager.Generator().manual_seed(0), dtype=dtype).numpy()
    assert x.min() >= 0
    assert x.max() < 1
    counts = np.histogram(x, bins=50, range=(0, 1))[0]
    # chi squared with 49 degrees of freedom: mean 49, deviation 9.9
    assert ((counts - N / 50) ** 2 / (N / 50)).sum() < 100
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("dtype", [eager.float32, eager.float64])
def test_normal(dtype: Any) -> None:
    x = eager.randn(N, generator=eager.Generator().manual_seed(0), dtype=dtype).numpy()
    assert np.isfinite(x).all()
    moments = [np.mean(x), np.mean(x**2), np.mean(x**3), np.mean(x**4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.06)


def test_integers() -> None:
    gen = eager.Generator().manual_seed(0)
    x = eager.randint(-3, 4, (N,), generator=gen).numpy()
    counts = np.bincount(x + 3, minlength=7)
    assert len(counts) == 7
    assert ((counts - N / 7) ** 2 / (N / 7)).sum() < 30
    wide = eager.randint(-(2**62), 2**62, (1000,), generator=gen).numpy()
    assert wide.min() < -(2**61)
    assert wide.max() > 2**61
    assert eager.randint(5, (3,), dtype=eager.int32).dtype == eager.int32


def test_permutations() -> None:
    gen = eager.Generator().manual_seed(0)
    x = eager.randperm(1000, generator=gen).numpy()
    np.testing.assert_array_equal(np.sort(x), np.arange(1000))
    assert eager.randperm(0).shape == (0,)
    firsts = [int(eager.randperm(4, generator=gen)[0]) for _ in range(400)]
    assert np.bincount(firsts).min() > 60


def test_bernoulli_and_likes() -> None:
    eager.manual_seed(0)
    p = eager.full((N,), 0.3)
    x = eager.bernoulli(p)
    assert x.dtype == eager.float32
    assert abs(x.mean().item() - 0.3) < 0.01
    like = eager.ones(2, 3, dtype=eager.float64)
    for made in (eager.rand_like(like), eager.randn_like(like), eager.randint_like(like, 5)):
        assert made.dtype == eager.float64
        assert made.shape == (2, 3)
    assert eager.normal(eager.zeros(4), 2.0).shape == (4,)
    assert eager.normal(1.0, 0.0, (2,)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("fill", "low", "high"),
    [
        (lambda x: x.uniform_(-2, 3), -2, 3),
        (lambda x: x.normal_(0.5, 0.01), 0, 1),
        (lambda x: x.bernoulli_(0.5), 0, 1),
        (lambda x: x.random_(10), 0, 9),
        (lambda x: x.random_(3, 10), 3, 9),
    ],
)
def test_filling_in_place(fill: Callable[[Any], Any], low: float, high: float) -> None:
    x = eager.empty(500)
    assert fill(x) is x
    values = x.numpy()
    assert values.min() >= low
    assert values.max() <= high
    assert len(np.unique(values)) > 1


def test_bad_arguments() -> None:
    with pytest.raises(DTypeError, match=r"^randn: "):
        eager.randn(2, dtype=eager.int32)
    with pytest.raises(ArgumentError, match=r"^randint: "):
        eager.randint(3, 3, (1,))
    with pytest.raises(eager.errors.ShapeError, match=r"^rand: "):
        eager.rand(-1)
    with pytest.raises(ArgumentError, match=r"^normal: "):
        eager.normal(0.0, 1.0)


def test_requires_grad_and_device() -> None:
    assert eager.rand(2, requires_grad=True).requires_grad
    assert eager.rand(2, device="meta").is_meta
