"""Gradients against central differences, through public calls only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

import eager


def check_gradients(
    fn: Callable[..., eager.Tensor],
    inputs: Sequence[eager.Tensor],
    step: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
) -> None:
    """``autograd.grad`` of a fixed random projection of ``fn(*inputs)`` equals its central
    differences, for each of the float64 `inputs`."""
    rng = np.random.default_rng(0)
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    result = fn(*inputs)
    weights = eager.tensor(rng.uniform(0.5, 1.5, tuple(result.shape)))

    def value() -> float:
        with eager.no_grad():
            return float((fn(*inputs) * weights).sum().item())

    grads = eager.autograd.grad((result * weights).sum(), inputs)
    for x, grad in zip(inputs, grads, strict=True):
        flat = x.detach().numpy().reshape(-1)
        expected = np.empty_like(flat)
        for i in range(flat.size):
            kept = flat[i]
            flat[i] = kept + step
            above = value()
            flat[i] = kept - step
            expected[i] = (above - value()) / (2 * step)
            flat[i] = kept
        np.testing.assert_allclose(grad.numpy().reshape(-1), expected, rtol=rtol, atol=atol)
