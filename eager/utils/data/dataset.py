"""Datasets: anything with a length and items, or anything that iterates."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import eager
from eager import Tensor
from eager.errors import ArgumentError, IndexOutOfRange, ShapeError, helpful

T = TypeVar("T", covariant=True)


class Dataset(Generic[T]):
    """Items by index: subclasses define ``__getitem__`` and ``__len__``.

    A dataset may also define ``batch(indices)``, giving a whole collated batch at once; the loader
    then uses it in place of collating single items.
    """

    def __getitem__(self, index: int) -> T:
        raise NotImplementedError(f"{type(self).__name__}: the class defines no __getitem__")

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__}: the class defines no __len__")

    def __add__(self, other: Dataset[Any]) -> ConcatDataset:
        return ConcatDataset([self, other])


class IterableDataset(Dataset[T]):
    """Items one after another: subclasses define ``__iter__``."""

    def __iter__(self) -> Iterator[T]:
        raise NotImplementedError(f"{type(self).__name__}: the class defines no __iter__")


class TensorDataset(Dataset[tuple[Tensor, ...]]):
    """Item i is the tuple of row i of each tensor."""

    def __init__(self, *tensors: Tensor) -> None:
        if not tensors or any(t.ndim == 0 or t.shape[0] != tensors[0].shape[0] for t in tensors):
            raise helpful(
                ShapeError, "TensorDataset", "the tensors differ in length",
                expected="one or more tensors of one size in dimension 0",
                given=", ".join(str(tuple(t.shape)) for t in tensors) or "none",
            )  # fmt: skip
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(t[index] for t in self.tensors)

    def __len__(self) -> int:
        return int(self.tensors[0].shape[0])

    def batch(self, indices: Sequence[int]) -> list[Tensor]:
        """The rows `indices` of each tensor."""
        index = eager.tensor(list(indices), dtype=eager.int64)
        return [t.index_select(0, index) for t in self.tensors]


class Subset(Dataset[T]):
    """The items `indices` of another dataset."""

    def __init__(self, dataset: Dataset[T], indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices
        if hasattr(dataset, "batch"):
            self.batch = self._batch

    def _batch(self, indices: Sequence[int]) -> Any:
        return self.dataset.batch([self.indices[i] for i in indices])  # type: ignore[attr-defined]

    def __getitem__(self, index: int) -> T:
        return self.dataset[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)


class ConcatDataset(Dataset[Any]):
    """Several datasets one after another."""

    def __init__(self, datasets: Iterable[Dataset[Any]]) -> None:
        self.datasets = list(datasets)
        self.cumulative_sizes = list(itertools.accumulate(len(d) for d in self.datasets))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1] if self.cumulative_sizes else 0

    def __getitem__(self, index: int) -> Any:
        total = len(self)
        if not -total <= index < total:
            raise helpful(
                IndexOutOfRange, "ConcatDataset", "the index is out of range",
                expected=f"{-total} <= index < {total}", given=str(index),
            )  # fmt: skip
        index %= total
        at = bisect.bisect_right(self.cumulative_sizes, index)
        return self.datasets[at][index - (self.cumulative_sizes[at - 1] if at else 0)]


def random_split(
    dataset: Dataset[T], lengths: Sequence[int | float], generator: Any = None
) -> list[Subset[T]]:
    """Splits at random into subsets of the given lengths, or fractions that sum to 1.

    What rounding fractions down leaves over goes to the first subsets, one item each.
    """
    total = len(dataset)
    if all(isinstance(n, float) for n in lengths) and math.isclose(sum(lengths), 1):
        sizes = [math.floor(total * n) for n in lengths]
        for i in range(total - sum(sizes)):
            sizes[i % len(sizes)] += 1
    else:
        sizes = [int(n) for n in lengths]
    if sum(sizes) != total or any(n < 0 for n in sizes):
        raise helpful(
            ArgumentError, "random_split", "the lengths do not fit the dataset",
            expected=f"lengths that sum to {total}, or fractions that sum to 1",
            given=f"{list(lengths)}",
        )  # fmt: skip
    order = eager.randperm(total, generator=generator).tolist()
    ends = itertools.accumulate(sizes)
    return [Subset(dataset, order[end - n : end]) for n, end in zip(sizes, ends, strict=True)]
