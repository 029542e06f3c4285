"""Window functions, with SciPy's definitions.

With `sym` a window is symmetric, for filters; without, it is one period of a periodic one, for
spectra.  All are computed in float64 and rounded to `dtype` at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import eager
from eager.errors import ArgumentError, helpful

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "bartlett", "blackman", "cosine", "exponential", "gaussian", "general_cosine",
    "general_hamming", "hamming", "hann", "nuttall",
]  # fmt: skip


def _points(op: str, M: int, sym: bool) -> tuple[Tensor, int]:
    """(0 ... M-1 in float64, the number of steps from one end to the other)."""
    if M < 0:
        raise helpful(ArgumentError, op, "the length is negative", "0 or more", str(M))
    return eager.arange(M, dtype=eager.float64), max(M - 1 if sym else M, 1)


def _finish(window: Tensor, dtype: Any, device: Any, requires_grad: bool) -> Tensor:
    made = window.to(dtype or eager.get_default_dtype())
    if device is not None:
        made = made.to(device)
    return made.requires_grad_() if requires_grad else made


def general_cosine(
    M: int, *, a: Iterable[float], sym: bool = True, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """``sum_j (-1)^j a[j] cos(2 pi j i / n)``; ones for M = 1."""
    x, n = _points("general_cosine", M, sym)
    angle = x * (2 * math.pi / n)
    window = eager.zeros(M, dtype=eager.float64)
    for j, weight in enumerate(a):
        window = window + (angle * j).cos() * ((-1) ** j * weight)
    if M == 1:
        window = eager.ones(1, dtype=eager.float64)
    return _finish(window, dtype, device, requires_grad)


def general_hamming(M: int, *, alpha: float = 0.54, sym: bool = True, **options: Any) -> Tensor:
    """general_cosine of alpha and 1 - alpha."""
    return general_cosine(M, a=(alpha, 1 - alpha), sym=sym, **options)


def hamming(M: int, *, sym: bool = True, **options: Any) -> Tensor:
    """general_hamming with alpha 0.54."""
    return general_hamming(M, alpha=0.54, sym=sym, **options)


def hann(M: int, *, sym: bool = True, **options: Any) -> Tensor:
    """general_hamming with alpha 0.5: a raised cosine."""
    return general_hamming(M, alpha=0.5, sym=sym, **options)


def blackman(M: int, *, sym: bool = True, **options: Any) -> Tensor:
    """general_cosine of 0.42, 0.5 and 0.08."""
    return general_cosine(M, a=(0.42, 0.5, 0.08), sym=sym, **options)


def nuttall(M: int, *, sym: bool = True, **options: Any) -> Tensor:
    """general_cosine of Nuttall's four terms."""
    return general_cosine(M, a=(0.3635819, 0.4891775, 0.1365995, 0.0106411), sym=sym, **options)


def bartlett(
    M: int, *, sym: bool = True, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A triangle from 0 to 1 and back; ones for M = 1."""
    x, n = _points("bartlett", M, sym)
    window = 1 - (x * (2 / n) - 1).abs()
    if M == 1:
        window = eager.ones(1, dtype=eager.float64)
    return _finish(window, dtype, device, requires_grad)


def cosine(
    M: int, *, sym: bool = True, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Half a period of a sine, between its zeros."""
    x, _ = _points("cosine", M, sym)
    n = M if sym or M == 1 else M + 1
    window = ((x + 0.5) * (math.pi / max(n, 1))).sin()
    return _finish(window, dtype, device, requires_grad)


def exponential(
    M: int, *, center: float | None = None, tau: float = 1.0, sym: bool = True, dtype: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """``exp(-abs(i - center) / tau)``; the centre of a symmetric window is its middle."""
    if tau <= 0:
        raise helpful(ArgumentError, "exponential", "tau is not positive", "tau > 0", str(tau))
    if sym and center is not None:
        raise helpful(
            ArgumentError, "exponential", "a symmetric window has its centre in the middle",
            "center=None, or sym=False", f"center={center}",
        )  # fmt: skip
    x, n = _points("exponential", M, sym)
    middle = (n / 2 if M > 1 else 0.0) if center is None else center
    return _finish((-(x - middle).abs() / tau).exp(), dtype, device, requires_grad)


def gaussian(
    M: int, *, std: float = 1.0, sym: bool = True, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """``exp(-((i - middle) / std) ** 2 / 2)``."""
    if std <= 0:
        raise helpful(ArgumentError, "gaussian", "std is not positive", "std > 0", str(std))
    x, n = _points("gaussian", M, sym)
    scaled = (x - (n / 2 if M > 1 else 0.0)) / std
    return _finish((scaled * scaled * -0.5).exp(), dtype, device, requires_grad)
