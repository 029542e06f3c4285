"""Special functions under PyTorch's names: those that the ops provide accurately."""

from __future__ import annotations

from typing import TYPE_CHECKING

import eager
from eager.ops.functions import (
    erf,
    exp2,
    expm1,
    log1p,
    log_softmax,
    logit,
    logsumexp,
    round,
    sigmoid,
    sinc,
    softmax,
    xlogy,
)

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "entr", "erf", "exp2", "expit", "expm1", "log1p", "log_softmax", "logit", "logsumexp", "round",
    "sinc", "softmax", "xlog1py", "xlogy",
]  # fmt: skip

expit = sigmoid


def entr(input: Tensor) -> Tensor:
    """``-x log(x)``; 0 at 0, -inf below."""
    result: Tensor = eager.where(input < 0, float("-inf"), -xlogy(input, input))
    return result


def xlog1py(input: Tensor, other: Tensor) -> Tensor:
    """``x log(1 + y)``, but 0 where x is 0."""
    silent = (input == 0) & eager.isnan(other).logical_not()
    safe = eager.where(silent, 0, other)
    result: Tensor = eager.where(silent, 0, input * log1p(safe))
    return result
