"""Corners in which the functions once differed from PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import eager
from eager.errors import ArgumentError, ShapeError
from eager.nn import functional as F


def gradient(fn: Any, values: Any) -> list[Any]:
    x = eager.tensor(values, dtype=eager.float64, requires_grad=True)
    fn(x).sum().backward()
    assert x.grad is not None
    return x.grad.tolist()


# --- tensors without dimensions ------------------------------------------------------------------


def test_zero_dim_tensors_are_indexed_like_vectors_of_one() -> None:
    x = eager.tensor(2.5)
    assert eager.index_select(x, 0, eager.tensor([0])).tolist() == 2.5
    assert eager.index_copy(x, 0, eager.tensor([0]), eager.tensor(1.5)).tolist() == 1.5
    assert eager.index_add(x, 0, eager.tensor([0]), eager.tensor(1.5)).tolist() == 4.0
    assert eager.index_fill(x, 0, eager.tensor([0]), 7).tolist() == 7.0
    assert eager.scatter_add(x, 0, eager.tensor(0), eager.tensor(1.0)).tolist() == 3.5
    assert eager.cumsum(x, 0).tolist() == 2.5
    assert gradient(lambda t: eager.cumsum(t, 0), 2.0) == 1.0
    assert [t.tolist() for t in eager.nonzero(x, as_tuple=True)] == [[0]]
    assert x.unfold(0, 1, 1).tolist() == [2.5]


def test_a_zero_dim_index_is_one_place() -> None:
    x = eager.arange(6).reshape(2, 3)
    assert eager.index_select(x, 1, eager.tensor(2)).tolist() == [[2], [5]]


def test_gather_with_an_empty_index_of_another_shape() -> None:
    index = eager.zeros(2, 0, dtype=eager.int64)
    assert tuple(eager.gather(eager.ones(5), 0, index).shape) == (2, 0)
    assert gradient(lambda t: eager.gather(t, 0, index), [1.0, 2.0]) == [0.0, 0.0]


def test_searchsorted_of_a_number_has_no_dimensions() -> None:
    found = eager.searchsorted(eager.tensor([1.0, 2.0, 3.0]), eager.tensor(2.5))
    assert tuple(found.shape) == ()
    assert found.item() == 2


# --- arguments -----------------------------------------------------------------------------------


def test_repeat_interleave_by_a_vector() -> None:
    x = eager.tensor([[1.0, 2.0], [3.0, 4.0]])
    twice = x.repeat_interleave(eager.tensor([1, 2]), dim=0)
    assert twice.tolist() == [[1.0, 2.0], [3.0, 4.0], [3.0, 4.0]]
    assert eager.repeat_interleave(x, 2, output_size=8).numel() == 8
    assert eager.repeat_interleave(x, eager.tensor([0, 0]), 1).numel() == 0
    with pytest.raises(ShapeError, match=r"^repeat_interleave: repeats do not fit"):
        eager.repeat_interleave(x, eager.tensor([1, 2, 3]), 0)


def test_squeeze_of_no_dimensions() -> None:
    assert tuple(eager.ones(1, 2, 1).squeeze(()).shape) == (1, 2, 1)


def test_to_takes_flags_by_position() -> None:
    x = eager.ones(2)
    assert x.to(eager.float32, False, False) is x
    assert x.to("cpu", eager.float32, False, True) is not x
    assert x.to("cpu", eager.float64, True).dtype == eager.float64


def test_memory_formats() -> None:
    x = eager.arange(24.0).reshape(1, 2, 3, 4)
    assert x.contiguous(memory_format=eager.contiguous_format) is x
    assert x.float(memory_format=eager.preserve_format) is x
    images = x.to(memory_format=eager.channels_last)
    assert images.stride() == (24, 1, 8, 2)
    assert images.tolist() == x.tolist()
    assert images.contiguous(memory_format=eager.channels_last) is images
    assert images.clone(memory_format=eager.contiguous_format).stride() == x.stride()
    assert x.double(memory_format=eager.channels_last).stride() == (24, 1, 8, 2)
    with pytest.raises(ShapeError, match="channels_last is defined for images"):
        eager.ones(2).clone(memory_format=eager.channels_last)
    with pytest.raises(ArgumentError, match="this is no memory format"):
        x.clone(memory_format="rows")


# --- gradients -----------------------------------------------------------------------------------


def test_in_place_functions_keep_what_their_gradient_needs() -> None:
    for name, args in (("log2_", ()), ("tan_", ()), ("pow_", (3.0,)), ("logit_", ())):
        expected = gradient(lambda t, n=name, a=args: getattr(eager, n[:-1])(t, *a), [0.5, 0.7])
        assert gradient(lambda t, n=name, a=args: getattr(t * 1, n)(*a), [0.5, 0.7]) == expected


def test_norms_have_the_slope_zero_at_zero() -> None:
    assert gradient(eager.norm, [0.0, 0.0]) == [0.0, 0.0]
    assert gradient(lambda t: eager.norm(t, 3.0), [0.0, 0.0]) == [0.0, 0.0]
    assert gradient(lambda t: eager.norm(t, 0), [0.0, 2.0]) == [0.0, 0.0]
    assert gradient(eager.std, [1.0, 1.0]) == [0.0, 0.0]
    assert F.normalize(eager.zeros(2, 3), p=0).tolist() == [[0.0] * 3] * 2


def test_remainder_has_the_slope_of_the_rounded_quotient() -> None:
    # 1 / 0.1 rounds to 10, but 0.1 goes into 1 nine times
    divisor = eager.tensor([0.1], dtype=eager.float64, requires_grad=True)
    eager.remainder(eager.tensor([1.0], dtype=eager.float64), divisor).sum().backward()
    assert divisor.grad is not None
    assert divisor.grad.tolist() == [-9.0]


def test_bernoulli_has_the_slope_zero() -> None:
    assert gradient(eager.bernoulli, [0.2, 0.8]) == [0.0, 0.0]


def test_a_place_named_twice_fills_once() -> None:
    value = eager.tensor(2.0, requires_grad=True)
    eager.index_fill(eager.zeros(3), 0, eager.tensor([1, 1]), value).sum().backward()
    assert value.grad is not None
    assert value.grad.item() == 1.0


def test_fmax_gives_the_first_of_equals_the_gradient() -> None:
    x = eager.tensor([1.0, float("nan")], requires_grad=True)
    y = eager.tensor([1.0, 2.0], requires_grad=True)
    eager.fmax(x, y).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert (x.grad.tolist(), y.grad.tolist()) == ([1.0, 0.0], [0.0, 1.0])


# --- values --------------------------------------------------------------------------------------


def test_a_nan_bound_clamps_to_nan() -> None:
    nan = float("nan")
    x = eager.tensor([1.0, 2.0])
    np.testing.assert_array_equal(eager.clamp(x, max=eager.tensor([nan, 1.0])).numpy(), [nan, 1.0])
    np.testing.assert_array_equal(eager.clamp(x, min=nan).numpy(), [nan, nan])


def test_numbers_keep_the_precision_of_float64() -> None:
    limits = eager.nan_to_num(eager.tensor([float("inf"), float("-inf")], dtype=eager.float64))
    assert limits.tolist() == [eager.finfo(eager.float64).max, eager.finfo(eager.float64).min]
    x = eager.tensor([2.0], dtype=eager.float64)
    assert eager.xlogy(x, 0.3).item() == pytest.approx(2 * np.log(0.3), rel=1e-15)


def test_unique_slices() -> None:
    x = eager.tensor([[2, 1], [1, 3], [2, 1]])
    values, inverse, counts = eager.unique(x, return_inverse=True, return_counts=True, dim=0)
    assert values.tolist() == [[1, 3], [2, 1]]
    assert (inverse.tolist(), counts.tolist()) == ([1, 0, 1], [1, 2])
    runs, counts = eager.unique_consecutive(x, return_counts=True)
    assert (runs.tolist(), counts.tolist()) == ([2, 1, 3, 2, 1], [1, 2, 1, 1, 1])


def test_median_with_nan() -> None:
    nan = float("nan")
    x = eager.tensor([[3.0, nan, 1.0, 2.0], [4.0, 1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(eager.median(x, 1).values.numpy(), [nan, 2.0])
    np.testing.assert_array_equal(eager.nanmedian(x, 1).values.numpy(), [2.0, 2.0])
