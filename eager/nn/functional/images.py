"""Functions of batches (N, C, ...): normalisation, channel dropout, padding, pixel shuffles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import eager
from eager import Tensor
from eager.errors import ArgumentError, ShapeError, helpful
from eager.nn.functional.layers import dropout


def _channels(x: Tensor | None, ndim: int) -> Tensor | None:
    """A vector of one number per channel, shaped to meet dimension 1."""
    return None if x is None else x.reshape(-1, *[1] * (ndim - 2))


def _normalized(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    result = (x - mean) * (var + eps).rsqrt()
    if weight is not None:
        result = result * weight
    return result if bias is None else result + bias


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Zero mean and unit variance per channel, then ``* weight + bias``.

    In training, of the batch's statistics, and the running ones are moved towards them by
    `momentum`; otherwise of the running ones.  Shapes: input (N, C, ...), the others (C,).
    """
    if input.ndim < 2:
        raise helpful(ShapeError, "batch_norm", "no channels", "(N, C, ...)", f"{input.ndim} dims")
    if not training:
        if running_mean is None or running_var is None:
            raise helpful(
                ArgumentError, "batch_norm", "no statistics", "running_mean and running_var",
                "training=False without them",
            )  # fmt: skip
        mean, var = running_mean, running_var
    else:
        dims = tuple(d for d in range(input.ndim) if d != 1)
        count = math.prod(input.shape[d] for d in dims)
        if count == 1:
            raise helpful(
                ArgumentError, "batch_norm", "one value per channel has no variance",
                "more than one value per channel in training", f"shape {tuple(input.shape)}",
            )  # fmt: skip
        var, mean = eager.var_mean(input, dims, unbiased=False)
        with eager.no_grad():
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            if running_var is not None:
                unbiased = var * (count / max(count - 1, 1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    n = input.ndim
    shaped = [_channels(t, n) for t in (mean, var, weight, bias)]
    assert shaped[0] is not None
    assert shaped[1] is not None
    return _normalized(input, shaped[0], shaped[1], shaped[2], shaped[3], eps)


def instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Zero mean and unit variance per channel of each sample (N, C, ...), then
    ``* weight + bias``.  Running statistics are not supported."""
    if running_mean is not None or running_var is not None or not use_input_stats:
        raise helpful(
            ArgumentError, "instance_norm", "running statistics are not supported",
            "running_mean=None, running_var=None, use_input_stats=True",
            f"{use_input_stats=}, {momentum=} and running statistics",
        )  # fmt: skip
    dims = tuple(range(2, input.ndim))
    var, mean = eager.var_mean(input, dims, unbiased=False, keepdim=True)
    n = input.ndim
    return _normalized(input, mean, var, _channels(weight, n), _channels(bias, n), eps)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Zero mean and unit variance per group of channels of each sample (N, C, ...), then
    ``* weight + bias``, which are (C,)."""
    if input.ndim < 2 or num_groups < 1 or input.shape[1] % num_groups:
        raise helpful(
            ArgumentError, "group_norm", "the groups do not divide the channels",
            "(N, C, ...) with C a multiple of num_groups",
            f"{num_groups} groups of shape {tuple(input.shape)}",
        )  # fmt: skip
    n, c = input.shape[:2]
    count = math.prod(input.shape[1:]) // num_groups
    rows = input.reshape(n, num_groups, count)
    var, mean = eager.var_mean(rows, 2, unbiased=False, keepdim=True)
    result = _normalized(rows, mean, var, None, None, eps).reshape(input.shape)
    if weight is not None:
        result = result * weight.reshape(c, *[1] * (input.ndim - 2))
    return result if bias is None else result + bias.reshape(c, *[1] * (input.ndim - 2))


def _dropout_channels(
    op: str, input: Tensor, p: float, training: bool, inplace: bool, spatial: int
) -> Tensor:
    if input.ndim not in (spatial + 1, spatial + 2):
        raise helpful(
            ShapeError, op, "wrong number of dimensions", f"{spatial + 1} or {spatial + 2}",
            str(input.ndim),
        )  # fmt: skip
    lead = input.shape[: input.ndim - spatial]
    kept = dropout(eager.ones(*lead, *[1] * spatial, dtype=input.dtype), p, training)
    result = input * kept
    return input.copy_(result) if inplace else result


def dropout1d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """dropout of whole channels of (N, C, L) or (C, L)."""
    return _dropout_channels("dropout1d", input, p, training, inplace, 1)


def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """dropout of whole channels of (N, C, H, W) or (C, H, W)."""
    return _dropout_channels("dropout2d", input, p, training, inplace, 2)


def dropout3d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """dropout of whole channels of (N, C, D, H, W) or (C, D, H, W)."""
    return _dropout_channels("dropout3d", input, p, training, inplace, 3)


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Borders around the tensor: `pad` holds (before, after) of the last dimension, then of the one
    before it, and so on.

    `mode` says what they hold: "constant" `value`, "reflect" or "replicate" the nearby elements,
    "circular" those of the other end.
    """
    if mode == "constant":
        padded: Tensor = eager.constant_pad_nd(input, tuple(pad), 0 if value is None else value)
        return padded
    if mode not in ("reflect", "replicate", "circular"):
        raise helpful(
            ArgumentError, "pad", "unknown mode", "constant, reflect, replicate or circular", mode
        )
    for i in range(0, len(pad), 2):
        dim = input.ndim - 1 - i // 2
        n, before, after = input.shape[dim], pad[i], pad[i + 1]
        limit = {"reflect": n - 1, "circular": n, "replicate": math.inf}[mode]
        if max(before, after) > limit or n == 0:
            raise helpful(
                ShapeError, "pad", "the border is wider than what it mirrors",
                f"at most {limit}", str((before, after)),
            )  # fmt: skip
        place = eager.arange(-before, n + after)
        if mode == "replicate":
            place = place.clamp(0, n - 1)
        elif mode == "circular":
            place = place % n
        else:
            place = (n - 1) - ((n - 1) - place.abs()).abs()
        input = eager.index_select(input, dim, place)
    return input


def _square(op: str, factor: int, divides: Sequence[int]) -> None:
    if factor < 1 or any(n % factor for n in divides):
        raise helpful(
            ShapeError, op, "the sizes are not multiples of the factor",
            f"multiples of {factor}, 1 or more", str(tuple(divides)),
        )  # fmt: skip


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """(..., C r r, H, W) to (..., C, H r, W r): channels become pixels."""
    r = upscale_factor
    *lead, c, h, w = input.shape
    _square("pixel_shuffle", r * r, [c])
    x = input.reshape(*lead, c // (r * r), r, r, h, w)
    n = len(lead)
    x = x.permute(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return x.reshape(*lead, c // (r * r), h * r, w * r)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """(..., C, H r, W r) to (..., C r r, H, W): pixels become channels."""
    r = downscale_factor
    *lead, c, h, w = input.shape
    _square("pixel_unshuffle", r, [h, w])
    x = input.reshape(*lead, c, h // r, r, w // r, r)
    n = len(lead)
    x = x.permute(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*lead, c * r * r, h // r, w // r)
