"""The inverse trigonometric and hyperbolic functions against NumPy's in extended precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import eager

RNG = np.random.default_rng(0)
N = 100_000


def spread(low: float, high: float) -> Any:
    """Values of both signs whose logarithms are uniform."""
    return np.exp(RNG.uniform(low, high, N)) * RNG.choice([-1.0, 1.0], N)


WIDE = np.concatenate([RNG.uniform(-4, 4, N), spread(-60, 60)])
UNIT = np.concatenate([RNG.uniform(-1, 1, N), spread(-40, 0), 1 - np.exp(RNG.uniform(-15, 0, N))])

CASES = [
    ("atan", WIDE, np.arctan),
    ("asin", UNIT, np.arcsin),
    ("acos", UNIT, np.arccos),
    ("sinh", np.concatenate([RNG.uniform(-90, 90, N), UNIT]), np.sinh),
    ("cosh", RNG.uniform(-90, 90, N), np.cosh),
    ("asinh", WIDE, np.arcsinh),
    ("acosh", 1 + np.abs(WIDE), np.arccosh),
    ("atanh", UNIT, np.arctanh),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "values", "exact"), CASES, ids=[c[0] for c in CASES])
def test_error_in_ulp(name: str, values: Any, exact: Callable[..., Any], dtype: Any) -> None:
    if np.finfo(np.longdouble).nmant <= np.finfo(dtype).nmant:
        pytest.skip("this machine has no wider type to compare with")
    x = values.astype(dtype)
    with np.errstate(all="ignore"):
        want = exact(x.astype(np.longdouble))
        rounded = want.astype(dtype)
        got = getattr(eager, name)(eager.from_numpy(x)).numpy()
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(rounded))
        finite = np.isfinite(rounded)
        error = np.abs(got[finite].astype(np.longdouble) - want[finite])
    assert (error / np.spacing(np.abs(rounded[finite]))).max() < 4


@pytest.mark.parametrize("dtype", [eager.float32, eager.float64])
def test_special_values(dtype: Any) -> None:
    inf, nan = float("inf"), float("nan")

    def call(name: str, *values: float) -> Any:
        return getattr(eager, name)(eager.tensor(list(values), dtype=dtype)).numpy()

    half_pi = np.float64(np.pi / 2) if dtype == eager.float64 else np.float32(np.pi / 2)
    np.testing.assert_array_equal(call("atan", inf, -inf, nan), [half_pi, -half_pi, nan])
    np.testing.assert_array_equal(call("asin", 1.0, -1.0, 1.5), [half_pi, -half_pi, nan])
    np.testing.assert_array_equal(call("acos", 1.0, 1.5, nan), [0.0, nan, nan])
    np.testing.assert_array_equal(call("sinh", inf, -inf, nan), [inf, -inf, nan])
    np.testing.assert_array_equal(call("cosh", inf, -inf, nan), [inf, inf, nan])
    np.testing.assert_array_equal(call("asinh", inf, -inf, nan), [inf, -inf, nan])
    np.testing.assert_array_equal(call("acosh", 1.0, inf, 0.5), [0.0, inf, nan])
    np.testing.assert_array_equal(call("atanh", 1.0, -1.0, 2.0), [inf, -inf, nan])
    for name in ("atan", "asin", "sinh", "asinh", "atanh"):
        assert np.signbit(call(name, -0.0, 0.0)).tolist() == [True, False], name
