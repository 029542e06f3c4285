"""Initial values for parameters.  All functions write into their argument and return it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import eager
from eager import Tensor
from eager.errors import ArgumentError, ShapeError, helpful

_GAINS = {
    "linear": 1.0, "conv1d": 1.0, "conv2d": 1.0, "conv3d": 1.0, "sigmoid": 1.0,
    "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4,
}  # fmt: skip


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which weights are scaled so that `nonlinearity` keeps the variance.

    `param` is leaky_relu's negative slope (default 0.01).
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        raise helpful(
            ArgumentError, "calculate_gain", "no gain is known for this nonlinearity",
            expected=", ".join([*_GAINS, "leaky_relu"]), given=repr(nonlinearity),
        )  # fmt: skip
    return _GAINS[nonlinearity]


def _write(tensor: Tensor, values: Tensor) -> Tensor:
    with eager.no_grad():
        return tensor.copy_(values)


def _draw(draw: Callable[..., Tensor], tensor: Tensor, generator: Any) -> Tensor:
    """Random numbers of the tensor's shape, in its dtype but at least float32."""
    dtype = eager.float64 if tensor.dtype == eager.float64 else eager.float32
    return draw(*tensor.shape, dtype=dtype, device=tensor.device, generator=generator)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Tensor:
    """Uniform in [a, b)."""
    with eager.no_grad():
        return tensor.copy_(_draw(eager.rand, tensor, generator) * (b - a) + a)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Tensor:
    """Normal."""
    with eager.no_grad():
        return tensor.copy_(_draw(eager.randn, tensor, generator) * std + mean)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Any = None,
) -> Tensor:
    """Normal, restricted to [a, b].

    Inverts the distribution function by bisection in float64: exact to 2^-40 of b - a.
    """
    if not a < b or std <= 0:
        raise helpful(
            ArgumentError, "trunc_normal_", "the interval or the deviation makes no sense",
            expected="a < b and std > 0", given=f"{a=}, {b=}, {std=}",
        )  # fmt: skip

    def cdf(z: float) -> float:
        return 0.5 * (1 + math.erf(z / math.sqrt(2)))

    below, above = (a - mean) / std, (b - mean) / std
    with eager.no_grad():
        drawn = _draw(eager.rand, tensor, generator).double()
        wanted = drawn * (cdf(above) - cdf(below)) + cdf(below)
        low, high = eager.full_like(wanted, below), eager.full_like(wanted, above)
        for _ in range(40):
            middle = (low + high) * 0.5
            left = (eager.erf(middle * math.sqrt(0.5)) + 1) * 0.5 < wanted
            low, high = eager.where(left, middle, low), eager.where(left, high, middle)
        return tensor.copy_((low + high) * (0.5 * std) + mean)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """One value everywhere."""
    with eager.no_grad():
        return tensor.fill_(val)


def zeros_(tensor: Tensor) -> Tensor:
    """0 everywhere."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """1 everywhere."""
    return constant_(tensor, 1.0)


def eye_(tensor: Tensor) -> Tensor:
    """The identity matrix; `tensor` is 2-dimensional."""
    if tensor.ndim != 2:
        raise helpful(
            ShapeError, "eye_", "the tensor is not a matrix",
            expected="2 dimensions", given=f"{tuple(tensor.shape)}",
        )  # fmt: skip
    return _write(tensor, eager.eye(*tensor.shape))


def _fans(op: str, tensor: Tensor) -> tuple[int, int]:
    """(inputs, outputs) of one unit; dimension 0 counts outputs, 1 inputs, the others both."""
    if tensor.ndim < 2:
        raise helpful(
            ShapeError, op, "fans are defined for weights only",
            expected="at least 2 dimensions", given=f"{tuple(tensor.shape)}",
        )  # fmt: skip
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """Uniform in ±gain * sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010)."""
    bound = gain * math.sqrt(6 / max(sum(_fans("xavier_uniform_", tensor)), 1))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """Normal with deviation gain * sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio 2010)."""
    std = gain * math.sqrt(2 / max(sum(_fans("xavier_normal_", tensor)), 1))
    return normal_(tensor, 0.0, std, generator)


def _kaiming_std(op: str, tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise helpful(
            ArgumentError, op, "no such mode", expected="'fan_in' or 'fan_out'", given=repr(mode)
        )
    fan = _fans(op, tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Any = None,
) -> Tensor:
    """Uniform in ±gain * sqrt(3 / fan) (He et al. 2015)."""
    bound = math.sqrt(3) * _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Any = None,
) -> Tensor:
    """Normal with deviation gain / sqrt(fan) (He et al. 2015)."""
    std = _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity)
    return normal_(tensor, 0.0, std, generator)


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """A random (semi-)orthogonal matrix times gain (Saxe et al. 2013).

    Dimensions beyond the first are taken together as columns.
    """
    if tensor.ndim < 2:
        raise helpful(
            ShapeError, "orthogonal_", "the tensor is not a matrix",
            expected="at least 2 dimensions", given=f"{tuple(tensor.shape)}",
        )  # fmt: skip
    if tensor.numel() == 0:
        return tensor
    rows, columns = tensor.shape[0], tensor.numel() // tensor.shape[0]
    drawn = _draw(eager.randn, tensor, generator).numpy().reshape(rows, columns)
    tall = drawn if rows >= columns else drawn.T
    q, r = np.linalg.qr(tall.astype(np.float64))
    # With a positive diagonal of r the decomposition is unique, and q uniformly distributed.
    q = q * np.sign(np.diag(r))
    result = np.ascontiguousarray(q if rows >= columns else q.T).reshape(tuple(tensor.shape))
    return _write(tensor, eager.from_numpy(result * gain))
