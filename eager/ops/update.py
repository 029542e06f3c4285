"""Optimizer steps, each one kernel over a parameter and its state.

The hyper-parameters are 0-dim tensors, so that a schedule changes them without a new trace.
All results replace the tensors they are named after.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eager.op import Promotion, elementwise
from eager.samples import calls
from eager.scalar import Expr, Vocabulary

_SGD = "lr momentum dampening weight_decay nesterov first"
_ADAM = "step lr beta1 beta2 eps weight_decay"


def _sgd(
    k: Vocabulary, p: Expr, g: Expr, buf: Expr, lr: Expr, momentum: Expr, dampening: Expr,
    weight_decay: Expr, nesterov: Expr, first: Expr,
) -> tuple[Expr, Expr]:  # fmt: skip
    """A step with momentum: (p, buf).  `nesterov` and `first` (no buffer yet) are 0 or 1."""
    g = k.fma(weight_decay, p, g)
    velocity = k.where(k.ne(first, 0), g, momentum * buf + (1.0 - dampening) * g)
    direction = k.where(k.ne(nesterov, 0), k.fma(momentum, velocity, g), velocity)
    return p - lr * direction, velocity


def _plain(k: Vocabulary, p: Expr, g: Expr, lr: Expr, weight_decay: Expr) -> Expr:
    """A step without momentum, which needs no state."""
    return p - lr * k.fma(weight_decay, p, g)


def _bias(k: Vocabulary, beta: Expr, step: Expr) -> Expr:
    """1 - beta^step, without the cancellation that costs float32 its digits in the first steps."""
    return -k.expm1(step * k.log(beta))


def _moments(
    k: Vocabulary, g: Expr, m: Expr, v: Expr, step: Expr, beta1: Expr, beta2: Expr, eps: Expr
) -> tuple[Expr, Expr, Expr]:
    """(m, v, direction) of Adam."""
    m = k.fma(1.0 - beta1, g - m, m)
    v = beta2 * v + (1.0 - beta2) * (g * g)
    scale = 1.0 / k.sqrt(_bias(k, beta2, step))
    return m, v, m / (k.fma(k.sqrt(v), scale, eps) * _bias(k, beta1, step))


def _adam(
    k: Vocabulary, p: Expr, g: Expr, m: Expr, v: Expr, step: Expr, lr: Expr, beta1: Expr,
    beta2: Expr, eps: Expr, weight_decay: Expr,
) -> tuple[Expr, Expr, Expr]:  # fmt: skip
    """Adam (Kingma and Ba, 2015), weight decay as part of the gradient: (p, m, v)."""
    m, v, direction = _moments(k, k.fma(weight_decay, p, g), m, v, step, beta1, beta2, eps)
    return p - lr * direction, m, v


def _adamw(
    k: Vocabulary, p: Expr, g: Expr, m: Expr, v: Expr, step: Expr, lr: Expr, beta1: Expr,
    beta2: Expr, eps: Expr, weight_decay: Expr,
) -> tuple[Expr, Expr, Expr]:  # fmt: skip
    """AdamW (Loshchilov and Hutter, 2019), weight decay apart from the gradient: (p, m, v)."""
    m, v, direction = _moments(k, g, m, v, step, beta1, beta2, eps)
    return p * (1.0 - lr * weight_decay) - lr * direction, m, v


def _sgd_ref(p, g, buf, lr, momentum, dampening, weight_decay, nesterov, first):  # type: ignore[no-untyped-def]
    g = g + weight_decay * p
    buf = g if first else momentum * buf + (1 - dampening) * g
    return p - lr * (g + momentum * buf if nesterov else buf), buf


def _adam_ref(decoupled: bool) -> Any:
    def ref(p, g, m, v, step, lr, beta1, beta2, eps, weight_decay):  # type: ignore[no-untyped-def]
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        return p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v

    return ref


def _state(rng: np.random.Generator, n: int) -> list[Any]:
    """A parameter, its gradient, and n non-negative state tensors."""
    return [*rng.normal(size=(2, 3, 4)), *rng.random((n, 3, 4))]


def _numbers(*values: float) -> list[Any]:
    return [np.asarray(float(v)) for v in values]


sgd_update = elementwise(
    "sgd_update", _sgd, outputs=2, uniform=_SGD,
    vjp=None, dtype=Promotion.FIRST, onnx=None, ref=_sgd_ref,
    samples=calls(lambda rng: [
        (*_state(rng, 1), *_numbers(0.1, 0.9, 0.1, 0.01, nesterov, first))
        for nesterov in (0, 1) for first in (0, 1)
    ]),
)  # fmt: skip

sgd_plain_update = elementwise(
    "sgd_plain_update", _plain, uniform="lr weight_decay",
    vjp=None, dtype=Promotion.FIRST, onnx=None,
    ref=lambda p, g, lr, weight_decay: p - lr * (g + weight_decay * p),
    samples=calls(lambda rng: [(*_state(rng, 0), *_numbers(0.1, wd)) for wd in (0, 0.01)]),
)  # fmt: skip

_adam_samples = calls(lambda rng: [
    (*_state(rng, 2), *_numbers(1, 0.01, 0.9, 0.999, 1e-8, 0.0)),
    (*_state(rng, 2), *_numbers(10, 0.01, 0.8, 0.99, 1e-6, 0.1)),
])  # fmt: skip

adam_update = elementwise(
    "adam_update", _adam, outputs=3, uniform=_ADAM, vjp=None, dtype=Promotion.FIRST, onnx=None,
    ref=_adam_ref(False), samples=_adam_samples,
)  # fmt: skip

adamw_update = elementwise(
    "adamw_update", _adamw, outputs=3, uniform=_ADAM, vjp=None, dtype=Promotion.FIRST, onnx=None,
    ref=_adam_ref(True), samples=_adam_samples,
)  # fmt: skip
