"""Loss functions.

`reduction` is "mean", "sum" or "none".  All losses are written with ops whose shapes do not depend
on values, so that they trace.
"""

from __future__ import annotations

import eager
from eager import Tensor
from eager.errors import ArgumentError, DTypeError, ShapeError, helpful
from eager.nn.functional.activation import softplus


def _reduce(op: str, loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise helpful(
        ArgumentError, op, "no such reduction",
        expected="'mean', 'sum' or 'none'", given=repr(reduction),
    )  # fmt: skip


def _same_shape(op: str, input: Tensor, target: Tensor) -> None:
    if input.shape != target.shape:
        raise helpful(
            ShapeError, op, "input and target differ in shape",
            expected=f"a target of shape {tuple(input.shape)}", given=f"{tuple(target.shape)}",
            hint="reshape or expand one of them",
        )  # fmt: skip


# --- classification ---------------------------------------------------------------------------


def _class_dim(op: str, input: Tensor, target: Tensor) -> int:
    """Where the classes lie in `input`; checks an integer target against it."""
    dim = 0 if input.ndim == 1 else 1
    expected = tuple(n for d, n in enumerate(input.shape) if d != dim)
    if input.ndim == 0 or tuple(target.shape) != expected:
        raise helpful(
            ShapeError, op, "input and target do not fit",
            expected="input (C,), (N, C) or (N, C, d1, ...) and target (), (N,) or (N, d1, ...)",
            given=f"{tuple(input.shape)} and {tuple(target.shape)}",
        )  # fmt: skip
    if target.dtype.is_floating_point or target.dtype == eager.bool:
        raise helpful(
            DTypeError, op, "class indices must be integers",
            expected="an int64 target", given=str(target.dtype),
        )  # fmt: skip
    return dim


def _check_weight(op: str, weight: Tensor | None, classes: int) -> None:
    if weight is not None and tuple(weight.shape) != (classes,):
        raise helpful(
            ShapeError, op, "there must be one weight per class",
            expected=f"a weight of shape ({classes},)", given=f"{tuple(weight.shape)}",
        )  # fmt: skip


def _pick(
    log_probs: Tensor, target: Tensor, dim: int, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """(the losses with their weights multiplied in, the weights), both in the target's shape.

    The weight is 0 where the target is `ignore_index`.
    """
    classes = log_probs.shape[dim]
    target = target.long()
    kept = target != ignore_index
    # Index ops wrap negative indices; here they are errors, so they are moved out of range.
    safe = target.where(target >= 0, classes).where(kept, 0)
    picked = log_probs.gather(dim, safe.unsqueeze(dim)).squeeze(dim)
    scale = kept.to(log_probs.dtype)
    if weight is not None:
        scale = scale * weight.index_select(0, safe.reshape(-1)).reshape(safe.shape)
    # where, not a product: an ignored log-probability may be -inf.
    return (-picked).where(kept, 0.0) * scale, scale


def _reduce_weighted(op: str, loss: Tensor, scale: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.sum() / scale.sum()
    return _reduce(op, loss, reduction)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log likelihood of log-probabilities (N, C, ...) at class indices (N, ...).

    "mean" divides by the sum of the weights of the targets that are not ignored.
    """
    dim = _class_dim("nll_loss", input, target)
    _check_weight("nll_loss", weight, input.shape[dim])
    loss, scale = _pick(input, target, dim, weight, ignore_index)
    return _reduce_weighted("nll_loss", loss, scale, reduction)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of logits (N, C, ...) with class indices (N, ...), or with class
    probabilities (N, C, ...) when `target` is floating.

    "mean" divides by the sum of the weights of the targets that are not ignored, or by N * ... for
    probabilities.  Raises IndexOutOfRange for a class index outside [0, C).
    """
    op = "cross_entropy"
    if not 0 <= label_smoothing <= 1:
        raise helpful(
            ArgumentError, op, "label_smoothing is out of range",
            expected="0 <= label_smoothing <= 1", given=str(label_smoothing),
        )  # fmt: skip
    if input.ndim > 0:
        _check_weight(op, weight, input.shape[0 if input.ndim == 1 else 1])
    if target.dtype.is_floating_point:
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    dim = _class_dim(op, input, target)
    log_probs = eager.log_softmax(input, dim)
    loss, scale = _pick(log_probs, target, dim, weight, ignore_index)
    result = _reduce_weighted(op, loss, scale, reduction)
    if label_smoothing == 0:
        return result
    spread = log_probs if weight is None else log_probs * _per_class(weight, input.ndim, dim)
    smooth = (-spread.sum(dim)).where(target != ignore_index, 0.0)
    smooth = _reduce_weighted(op, smooth, scale, reduction)
    return result * (1 - label_smoothing) + smooth * (label_smoothing / input.shape[dim])


def _soft_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float
) -> Tensor:
    _same_shape("cross_entropy", input, target)
    dim = 0 if input.ndim == 1 else 1
    classes = input.shape[dim]
    if label_smoothing > 0:
        target = target * (1 - label_smoothing) + label_smoothing / classes
    loss = eager.log_softmax(input, dim) * target
    if weight is not None:
        loss = loss * _per_class(weight, input.ndim, dim)
    return _reduce("cross_entropy", -loss.sum(dim), reduction)


def _per_class(weight: Tensor, ndim: int, dim: int) -> Tensor:
    return weight.reshape(-1, *[1] * (ndim - dim - 1))


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """``-(t * log(p) + (1 - t) * log(1 - p))`` of probabilities; logarithms are at least -100."""
    _same_shape("binary_cross_entropy", input, target)
    yes, no = _log(input), _log(1 - input)
    loss = -(target * yes + (1 - target) * no)
    if weight is not None:
        loss = loss * weight
    return _reduce("binary_cross_entropy", loss, reduction)


def _log(p: Tensor) -> Tensor:
    # The logarithm sees no zero, so that the gradient at p = 0 is 0 and not nan.
    positive = p > 0
    return p.where(positive, 1.0).log().clamp(min=-100).where(positive, -100.0)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """`binary_cross_entropy` of sigmoid(input), without overflow.

    `pos_weight` multiplies the loss of the positive targets.
    """
    _same_shape("binary_cross_entropy_with_logits", input, target)
    negative = softplus(-input, threshold=float("inf"))  # -log(sigmoid(x))
    if pos_weight is None:
        loss = (1 - target) * input + negative
    else:
        loss = (1 - target) * input + (target * (pos_weight - 1) + 1) * negative
    if weight is not None:
        loss = loss * weight
    return _reduce("binary_cross_entropy_with_logits", loss, reduction)


def kl_div(
    input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """``target * (log(target) - input)``, where `input` holds log-probabilities.

    "mean" averages over all elements; "batchmean" divides the sum by the first dimension, which is
    the divergence's definition.
    """
    if log_target:
        loss = target.exp() * (target - input)
    else:
        positive = target > 0
        # 0 * log(0) is 0 here; the inner where keeps its gradient from becoming nan.
        log = target.where(positive, 1.0).log()
        loss = (target * (log - input)).where(positive, 0.0)
    if reduction == "batchmean":
        return loss.sum() / (input.shape[0] if input.ndim else 1)
    return _reduce("kl_div", loss, reduction)


# --- regression -------------------------------------------------------------------------------


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """``(input - target) ** 2``."""
    _same_shape("mse_loss", input, target)
    difference = input - target
    return _reduce("mse_loss", difference * difference, reduction)


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """``abs(input - target)``."""
    _same_shape("l1_loss", input, target)
    return _reduce("l1_loss", (input - target).abs(), reduction)


def smooth_l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """``d * d / (2 * beta)`` where d = abs(input - target) < beta, else ``d - beta / 2``."""
    if beta < 0:
        raise helpful(
            ArgumentError, "smooth_l1_loss", "beta is negative",
            expected="beta >= 0", given=str(beta),
        )  # fmt: skip
    if beta == 0:
        return l1_loss(input, target, reduction)
    _same_shape("smooth_l1_loss", input, target)
    d = (input - target).abs()
    return _reduce(
        "smooth_l1_loss", eager.where(d < beta, d * d * (0.5 / beta), d - 0.5 * beta), reduction
    )


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """``d * d / 2`` where d = abs(input - target) < delta, else ``delta * (d - delta / 2)``."""
    if delta <= 0:
        raise helpful(
            ArgumentError, "huber_loss", "delta is not positive",
            expected="delta > 0", given=str(delta),
        )  # fmt: skip
    _same_shape("huber_loss", input, target)
    d = (input - target).abs()
    return _reduce(
        "huber_loss", eager.where(d < delta, d * d * 0.5, (d - 0.5 * delta) * delta), reduction
    )
