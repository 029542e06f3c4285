"""The loader: batches of a dataset, in the order of a sampler."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

import eager
from eager import Tensor
from eager.errors import ArgumentError, helpful
from eager.utils.data.dataset import IterableDataset
from eager.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler


def default_collate(batch: list[Any]) -> Any:
    """Joins the items of a batch.

    Tensors, arrays and numbers become one tensor with a new first dimension; tuples, lists and
    mappings are joined entry by entry; strings stay a list.
    """
    first = batch[0]
    if isinstance(first, Tensor):
        return eager.stack(batch)
    if isinstance(first, np.ndarray | np.generic):
        return eager.from_numpy(np.stack(batch))
    if isinstance(first, float):
        return eager.tensor(batch, dtype=eager.float64)
    if isinstance(first, int):
        return eager.tensor(batch)
    if isinstance(first, str | bytes):
        return batch
    if isinstance(first, Mapping):
        return {key: default_collate([item[key] for item in batch]) for key in first}
    if isinstance(first, tuple | list):
        if any(len(item) != len(first) for item in batch):
            raise helpful(
                ArgumentError, "default_collate", "the items of a batch differ in length",
                expected=f"{len(first)} entries each",
                given=f"{sorted({len(item) for item in batch})}",
            )  # fmt: skip
        columns = [default_collate(list(column)) for column in zip(*batch, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else columns
    raise helpful(
        ArgumentError, "default_collate", "items of this type cannot be joined",
        expected="tensors, arrays, numbers, strings, tuples, lists or mappings",
        given=type(first).__name__, hint="pass collate_fn=",
    )  # fmt: skip


class DataLoader:
    """Iterates over the batches of `dataset`; every iteration is one epoch.

    Args:
        dataset: items by index, or an `IterableDataset`.
        batch_size: items per batch; None gives single items, not collated.
        shuffle: a new random order each epoch, drawn from `generator` or the default one.
        sampler: the order of the items, in place of `shuffle`.
        batch_sampler: the batches, in place of the four options about order and size.
        num_workers: must be 0: batches are made in the calling thread.
        collate_fn: joins a list of items; `default_collate` by default.
        drop_last: leaves out a last batch that is not full.
        generator: see `shuffle`.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool = False,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[list[int]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        generator: Any = None,
    ) -> None:
        if num_workers != 0:
            raise helpful(
                ArgumentError, "DataLoader", "worker processes are not supported",
                expected="num_workers = 0", given=f"num_workers = {num_workers}",
            )  # fmt: skip
        iterable = isinstance(dataset, IterableDataset)
        if (iterable and (shuffle or sampler or batch_sampler)) or (shuffle and sampler):
            raise helpful(
                ArgumentError, "DataLoader", "the order is determined twice",
                expected="one of shuffle, sampler, batch_sampler and an IterableDataset",
                given="several",
            )  # fmt: skip
        if batch_sampler is not None and (batch_size != 1 or shuffle or sampler or drop_last):
            raise helpful(
                ArgumentError, "DataLoader", "the batches are determined twice",
                expected="batch_sampler without batch_size, shuffle, sampler and drop_last",
                given="both",
            )  # fmt: skip
        if batch_size is None and drop_last:
            raise helpful(
                ArgumentError, "DataLoader", "there is no last batch to drop",
                expected="a batch_size with drop_last", given="batch_size = None",
            )  # fmt: skip
        self.dataset = dataset
        self.batch_size = None if batch_sampler is not None else batch_size
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.generator = generator
        self.collate_fn = collate_fn
        self.sampler: Any = sampler
        if sampler is None and not iterable:
            self.sampler = (
                RandomSampler(dataset, generator=generator)
                if shuffle
                else SequentialSampler(dataset)
            )
        self.batch_sampler: Any = batch_sampler
        if batch_sampler is None and batch_size is not None and not iterable:
            self.batch_sampler = BatchSampler(self.sampler, batch_size, drop_last)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.dataset, IterableDataset):
            return self._stream()
        if self.batch_sampler is None:
            return (self._single(self.dataset[i]) for i in self.sampler)
        return map(self._batch, self.batch_sampler)

    def _single(self, item: Any) -> Any:
        return item if self.collate_fn is None else self.collate_fn(item)

    def _batch(self, indices: list[int]) -> Any:
        if self.collate_fn is None and hasattr(self.dataset, "batch"):
            return self.dataset.batch(indices)
        return (self.collate_fn or default_collate)([self.dataset[i] for i in indices])

    def _stream(self) -> Iterator[Any]:
        items = iter(self.dataset)
        if self.batch_size is None:
            yield from map(self._single, items)
            return
        while batch := list(itertools.islice(items, self.batch_size)):
            if len(batch) < self.batch_size and self.drop_last:
                return
            yield (self.collate_fn or default_collate)(batch)

    def __len__(self) -> int:
        if isinstance(self.dataset, IterableDataset):
            n = len(self.dataset)
            if self.batch_size is None:
                return n
            return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
        return len(self.sampler if self.batch_sampler is None else self.batch_sampler)
