"""What the layers compute: affine maps, look-ups, normalisation, dropout, distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import eager
from eager import Tensor
from eager.errors import ArgumentError, ShapeError, helpful

_HALF = (eager.float16, eager.bfloat16)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias``.

    Shapes: input (*, in), weight (out, in) or (in,), bias (out,) or (); result (*, out) or (*).
    """
    if weight.ndim not in (1, 2) or input.ndim == 0 or input.shape[-1] != weight.shape[-1]:
        raise helpful(
            ShapeError, "linear", "input and weight do not fit",
            expected="input (*, in) and weight (out, in)",
            given=f"input {tuple(input.shape)} and weight {tuple(weight.shape)}",
        )  # fmt: skip
    if weight.ndim == 1:
        result = input @ weight
    elif input.ndim <= 2:
        result = input @ weight.t()
    else:
        # One product of two matrices, so that the weight's gradient is one as well.
        rows = input.reshape(-1, input.shape[-1]) @ weight.t()
        result = rows.reshape(*input.shape[:-1], weight.shape[0])
    return result if bias is None else result + bias


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y[..., o] = sum_ij input1[..., i] weight[o, i, j] input2[..., j] + bias[o]``.

    Shapes: input1 (*, in1), input2 (*, in2), weight (out, in1, in2), bias (out,).
    """
    fits = (
        weight.ndim == 3
        and input1.shape[:-1] == input2.shape[:-1]
        and (input1.shape[-1], input2.shape[-1]) == tuple(weight.shape[1:])
    )
    if not fits:
        raise helpful(
            ShapeError, "bilinear", "inputs and weight do not fit",
            expected="inputs (*, in1), (*, in2) and weight (out, in1, in2)",
            given=f"{tuple(input1.shape)}, {tuple(input2.shape)} and {tuple(weight.shape)}",
        )  # fmt: skip
    out, in1, in2 = weight.shape
    lead = input1.shape[:-1]
    left = input1.reshape(-1, in1) @ weight.permute(1, 0, 2).reshape(in1, out * in2)
    right = input2.reshape(-1, in2, 1)
    result = (left.reshape(-1, out, in2) @ right).reshape(*lead, out)
    return result if bias is None else result + bias


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of `weight` (entries, width) at the indices `input` (*): shape (*, width).

    The row `padding_idx` receives no gradient.
    """
    if max_norm is not None or scale_grad_by_freq or sparse or norm_type != 2.0:
        raise helpful(
            ArgumentError, "embedding", "this option is not supported",
            expected="max_norm=None, scale_grad_by_freq=False, sparse=False",
            given=f"{max_norm=}, {norm_type=}, {scale_grad_by_freq=}, {sparse=}",
        )  # fmt: skip
    rows: Tensor = eager.embedding(input, weight)
    if padding_idx is None:
        return rows
    if padding_idx < 0:
        padding_idx += weight.shape[0]
    return rows.where((input != padding_idx).unsqueeze(-1), rows.detach())


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    generator: Any = None,
) -> Tensor:
    """Zeroes each element with probability `p` and scales the others by 1 / (1 - p).

    The identity when not `training`.  Draws from `generator`, or from the default one.
    """
    if not 0 <= p <= 1:
        raise helpful(
            ArgumentError, "dropout", "p is not a probability",
            expected="0 <= p <= 1", given=f"p = {p}",
        )  # fmt: skip
    if not training or p == 0:
        return input
    if p == 1:
        result = input * 0
    else:
        # Drawn in float32 whatever the input's dtype: bfloat16 could not tell p from p + 0.003.
        drawn = eager.rand(
            *input.shape, dtype=eager.float32, device=input.device, generator=generator
        )
        result = input * (drawn >= p).to(input.dtype) * (1 / (1 - p))
    return input.copy_(result) if inplace else result


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Zero mean and unit variance over the last dimensions, then ``* weight + bias``.

    `normalized_shape` must equal the input's last dimensions and the shapes of weight and bias.
    """
    dims = _last_dims("layer_norm", input, normalized_shape)
    x = input.float() if input.dtype in _HALF else input
    centred = x - x.mean(dims, keepdim=True)
    variance = (centred * centred).mean(dims, keepdim=True)
    result = (centred * (variance + eps).rsqrt()).to(input.dtype)
    if weight is not None:
        result = result * weight
    return result if bias is None else result + bias


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """``input / sqrt(mean(input ** 2) + eps) * weight`` over the last dimensions.

    `eps` defaults to the machine epsilon of the input's dtype.
    """
    dims = _last_dims("rms_norm", input, normalized_shape)
    x = input.float() if input.dtype in _HALF else input
    eps = eager.finfo(x.dtype).eps if eps is None else eps
    result = (x * ((x * x).mean(dims, keepdim=True) + eps).rsqrt()).to(input.dtype)
    return result if weight is None else result * weight


def _last_dims(op: str, input: Tensor, normalized_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(normalized_shape)
    if not shape or tuple(input.shape[-len(shape) :]) != shape:
        raise helpful(
            ShapeError, op, "the input does not end in normalized_shape",
            expected=f"an input (*, {', '.join(map(str, shape))})",
            given=f"{tuple(input.shape)}",
        )  # fmt: skip
    return tuple(range(-len(shape), 0))


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """Divides by the p-norm along `dim`, or by eps where the norm is smaller."""
    return input / input.norm(p, dim, True).clamp(min=eps)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """``sum(x1 * x2) / (max(|x1|, eps) * max(|x2|, eps))`` along `dim`."""
    return (normalize(x1, 2.0, dim, eps) * normalize(x2, 2.0, dim, eps)).sum(dim)


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """The p-norm of ``x1 - x2 + eps`` along the last dimension."""
    return (x1 - x2 + eps).norm(p, -1, keepdim)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """``softmax(query @ key.T * scale + mask) @ value``.

    Shapes: query (..., L, E), key (..., S, E), value (..., S, V); result (..., L, V).  A bool
    mask says which keys take part; a floating one is added.  `scale` defaults to 1 / sqrt(E).
    """
    if is_causal and attn_mask is not None:
        raise helpful(
            ArgumentError, "scaled_dot_product_attention", "two masks were given",
            expected="attn_mask or is_causal=True", given="both",
        )  # fmt: skip
    scores = (query @ key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = eager.ones(scores.shape[-2], scores.shape[-1], dtype=eager.bool).tril()
    if attn_mask is not None:
        if attn_mask.dtype == eager.bool:
            scores = scores.masked_fill(attn_mask.logical_not(), float("-inf"))
        else:
            scores = scores + attn_mask
    weights = dropout(eager.softmax(scores, -1), dropout_p, dropout_p > 0)
    return weights @ value


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """int64 of shape (*, classes): 1 at the index, else 0.  -1: one more than the largest."""
    result: Tensor = eager.one_hot(tensor, num_classes)
    return result
