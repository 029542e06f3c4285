"""The float32 functions of `eager.scalar_math`, measured in units in the last place over all of
float32's range, as each instruction set's kernels compute them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

# function -> (reference in float64, bound in ulp)
FUNCTIONS: dict[str, tuple[Any, float]] = {
    "exp": (np.exp, 1.0),
    "expm1": (np.expm1, 1.5),
    "log": (np.log, 1.0),
    "log1p": (np.log1p, 1.4),
    "tanh": (np.tanh, 2.5),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 2.5),
    "erf": (np.vectorize(math.erf, otypes=[np.float64]), 1.3),
    "sin": (np.sin, 1.6),
    "cos": (np.cos, 1.6),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1.5),
}
ISAS = ("baseline", "avx2", "avx512")
STEP = 1009  # of the 2^32 bit patterns, every so many


def arguments() -> Any:
    """Float32 values spread over all bit patterns, and denser where the functions change most."""
    patterns = np.arange(0, 2**32, STEP, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = np.linspace(-110, 110, 400_001, dtype=np.float32)
    small = np.linspace(-2, 2, 200_001, dtype=np.float32)
    # multiples of pi / 2 are where sin and cos lose digits
    hard = (np.arange(1, 200_000) * (np.pi / 2)).astype(np.float32)
    special = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, 88.722839,
         88.72284, -87.33655, -103.97208, -103.97209, -1.0, 1.0, 5e37, 16367173 * 2.0**72],
        dtype=np.float32,
    )  # fmt: skip
    return np.concatenate([patterns, near, small, hard, special])


def ulps(got: Any, exact: Any) -> float:
    """The greatest error of `got`, in units in the last place of the exact results."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(np.float32)
        agree = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        finite = np.isfinite(got) & np.isfinite(rounded)
        # beyond the greatest float32 the next would be one unit away
        unit = np.spacing(np.minimum(np.abs(rounded), np.float32(3.4028234e38))).astype(np.float64)
        error = np.abs(got.astype(np.float64) - exact) / unit
    if not np.all(agree | finite):
        return math.inf
    return float(np.max(error[finite], initial=0.0))


def measure() -> dict[str, float]:
    """function -> greatest error, in this process."""
    import eager

    x = arguments()
    found = {}
    for name, (reference, _) in FUNCTIONS.items():
        with np.errstate(all="ignore"):
            exact = reference(x.astype(np.float64))
        found[name] = ulps(getattr(eager, name)(eager.from_numpy(x)).numpy(), exact)
    return found


@pytest.fixture(scope="module", params=ISAS)
def errors(request: pytest.FixtureRequest) -> Any:
    """The measurement under one instruction set (or the best this machine has below it)."""
    out = subprocess.run(
        [sys.executable, __file__], env={**os.environ, "EAGER_ISA": request.param},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(out.stdout)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_is_bounded(name: str, errors: dict[str, float]) -> None:
    assert errors[name] <= FUNCTIONS[name][1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(name: str) -> None:
    """Signs of zero, infinities and NaN."""
    import eager

    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype=np.float32)
    reference = FUNCTIONS[name][0]
    with np.errstate(all="ignore"):
        expected = np.asarray(reference(x.astype(np.float64)))
    got = getattr(eager, name)(eager.from_numpy(x)).numpy()
    np.testing.assert_array_equal(got, expected.astype(np.float32))
    zeros = expected == 0
    np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(expected[zeros]))


if __name__ == "__main__":
    print(json.dumps(measure()))
