"""Matrix products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eager.op import Kind, Promotion, structural
from eager.ops.shape import permute, reshape, sum_to
from eager.samples import array, calls


def transposed(x: Any) -> Any:
    """The last two dimensions swapped."""
    n = x.ndim
    return permute(x, (*range(n - 2), n - 1, n - 2))


def _rows(x: Any) -> Any:
    """All but the last dimension merged."""
    return reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def _matmul_as(a: Any, b: Any, like: Any) -> Any:
    """`a` @ `b`, laid out in memory as `like` is: the gradient of a transposed weight is then
    packed once it is transposed back, and optimizers read it at full speed."""
    if like.shape[-1] > 1 and like.stride()[-2:] == (1, like.shape[-2]):
        return transposed(matmul(transposed(b), transposed(a)))
    return matmul(a, b)


def _matmul_vjp(
    g: Any, _y: Any, a: Any, b: Any, *, needs: tuple[bool, ...] = (True, True)
) -> tuple[Any, Any]:
    grad_a = sum_to(matmul(g, transposed(b)), a.shape) if needs[0] else None
    if not needs[1]:
        return grad_a, None
    if b.ndim == 2 and a.ndim > 2:
        # one product of tall matrices, not a sum over the batch of small ones
        return grad_a, _matmul_as(transposed(_rows(a)), _rows(g), b)
    return grad_a, sum_to(_matmul_as(transposed(a), g, b), b.shape)


matmul = structural(
    "matmul", "a b", kind=Kind.CONTRACT, contract=True,
    vjp=_matmul_vjp, dtype=Promotion.NUMERIC, onnx="MatMul", ref=np.matmul,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), array(rng, (4, 2))),
        (array(rng, (4, 3)).T, array(rng, (2, 4)).T),
        (array(rng, (2, 3, 4)), array(rng, (4, 2))),
        (array(rng, (3, 4)), array(rng, (2, 4, 2))),
        (array(rng, (2, 1, 3, 4)), array(rng, (5, 4, 2))),
        (array(rng, (4,)), array(rng, (4, 2))),
        (array(rng, (2, 3, 4)), array(rng, (4,))),
        (array(rng, (4,)), array(rng, (4,))),
        (array(rng, (3, 0)), array(rng, (0, 2))),
        (array(rng, (0, 4)), array(rng, (4, 2))),
        (rng.integers(-5, 5, (3, 4)), rng.integers(-5, 5, (4, 2))),
    ]),
    doc="Batched matrix product; batch dimensions broadcast.",
)  # fmt: skip
