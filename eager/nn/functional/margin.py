"""Losses of margins, rankings and parametrised distributions."""

from __future__ import annotations

import math

import eager
from eager import Tensor
from eager.errors import ArgumentError, ShapeError, helpful
from eager.nn.functional.activation import logsigmoid
from eager.nn.functional.layers import cosine_similarity, pairwise_distance
from eager.nn.functional.loss import _reduce


def margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """``max(0, -target * (input1 - input2) + margin)``; the target is 1 or -1."""
    loss = (-target * (input1 - input2) + margin).clamp(min=0)
    return _reduce("margin_ranking_loss", loss, reduction)


def hinge_embedding_loss(
    input: Tensor, target: Tensor, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """x where the target is 1, ``max(0, margin - x)`` where it is -1."""
    near = eager.where(target != -1, input, 0.0)
    far = eager.where(target != 1, (margin - input).clamp(min=0), 0.0)
    return _reduce("hinge_embedding_loss", near + far, reduction)


def cosine_embedding_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """1 - cos where the target is 1, ``max(0, cos - margin)`` where it is -1."""
    cosine = cosine_similarity(input1, input2, -1)
    loss = eager.where(target == 1, 1 - cosine, (cosine - margin).clamp(min=0))
    return _reduce("cosine_embedding_loss", loss, reduction)


def soft_margin_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """``log(1 + exp(-target * input))``; the target is 1 or -1."""
    return _reduce("soft_margin_loss", -logsigmoid(target * input), reduction)


def multilabel_soft_margin_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """The mean over classes of the binary cross entropy of logits (N, C)."""
    loss = -(target * logsigmoid(input) + (1 - target) * logsigmoid(-input))
    if weight is not None:
        loss = loss * weight
    return _reduce("multilabel_soft_margin_loss", loss.mean(-1), reduction)


def multi_margin_loss(
    input: Tensor, target: Tensor, p: int = 1, margin: float = 1.0, weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """``sum_i max(0, margin - x[target] + x[i]) ** p / C`` over the other classes i.

    Shapes: input (N, C) or (C,), target (N,) or ().
    """
    if p not in (1, 2):
        raise helpful(ArgumentError, "multi_margin_loss", "unknown power", "1 or 2", str(p))
    rows = input.reshape(-1, input.shape[-1] if input.ndim else 1)
    index = target.reshape(-1, 1)
    violation = (rows - rows.gather(1, index) + margin).clamp(min=0) ** p
    if weight is not None:
        violation = violation * weight[index]
    others = eager.arange(rows.shape[1]) != index
    loss = eager.where(others, violation, 0.0).sum(1) / rows.shape[1]
    loss = loss if input.ndim > 1 else loss.reshape(())
    return _reduce("multi_margin_loss", loss, reduction)


def multilabel_margin_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """``sum_ij max(0, 1 - (x[y_j] - x[i])) / C`` over labels y_j, up to the first -1 in the
    target, and classes i that are not labels.

    Shapes: input and target (N, C) or (C,).
    """
    if input.shape != target.shape:
        raise helpful(
            ShapeError, "multilabel_margin_loss", "input and target differ in shape",
            str(tuple(input.shape)), str(tuple(target.shape)),
        )  # fmt: skip
    classes = input.shape[-1] if input.ndim else 1
    rows, labels = input.reshape(-1, classes), target.reshape(-1, classes)
    valid = eager.cumsum((labels < 0).long(), 1) == 0
    safe = eager.where(valid, labels, 0)
    is_label = eager.zeros_like(labels).scatter_add(1, safe, valid.long()) > 0
    picked = rows.gather(1, safe)
    gaps = (1 - picked.unsqueeze(2) + rows.unsqueeze(1)).clamp(min=0)
    counted = valid.unsqueeze(2) & ~is_label.unsqueeze(1)
    loss = eager.where(counted, gaps, 0.0).sum((1, 2)) / classes
    loss = loss if input.ndim > 1 else loss.reshape(())
    return _reduce("multilabel_margin_loss", loss, reduction)


def triplet_margin_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0, p: float = 2.0,
    eps: float = 1e-6, swap: bool = False, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """``max(0, |anchor - positive| - |anchor - negative| + margin)``.

    `swap` takes the negative's distance to whichever of the others is nearer."""
    near = pairwise_distance(anchor, positive, p, eps)
    far = pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = eager.minimum(far, pairwise_distance(positive, negative, p, eps))
    return _reduce("triplet_margin_loss", (near - far + margin).clamp(min=0), reduction)


def poisson_nll_loss(
    input: Tensor, target: Tensor, log_input: bool = True, full: bool = False, eps: float = 1e-8,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """``rate - target * log(rate)``; `input` is the rate's logarithm, or the rate.

    `full` adds Stirling's approximation of log(target!) where the target exceeds 1."""
    if log_input:
        loss = input.exp() - target * input
    else:
        loss = input - target * (input + eps).log()
    if full:
        big = target > 1
        safe = eager.where(big, target, 1)
        stirling = safe * safe.log() - safe + (safe * (2 * math.pi)).log() * 0.5
        loss = loss + eager.where(big, stirling, 0.0)
    return _reduce("poisson_nll_loss", loss, reduction)


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """``(log(var) + (input - target) ** 2 / var) / 2``, with var at least eps.

    Where var is less, its gradient passes all the same.  `full` adds log(2 pi) / 2."""
    spread = var if isinstance(var, Tensor) else eager.full_like(input, var)
    if spread.ndim == input.ndim - 1 and spread.shape == input.shape[:-1]:
        spread = spread.unsqueeze(-1)
    # the limit is a constant shift, so that the gradient is that of var itself
    spread = spread + (spread.clamp(min=eps) - spread).detach()
    difference = input - target
    loss = (spread.log() + difference * difference / spread) * 0.5
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return _reduce("gaussian_nll_loss", loss, reduction)
