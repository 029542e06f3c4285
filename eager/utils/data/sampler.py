"""Samplers: in which order a loader reads a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Generic, TypeVar

import numpy as np

import eager
from eager.errors import ArgumentError, helpful

T = TypeVar("T", covariant=True)


class Sampler(Generic[T]):
    """Iterates over indices, or over lists of them (a batch sampler)."""

    def __iter__(self) -> Iterator[T]:
        raise NotImplementedError(f"{type(self).__name__}: the class defines no __iter__")


class SequentialSampler(Sampler[int]):
    """0, 1, 2, ..."""

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler[int]):
    """All indices in random order; with `replacement`, `num_samples` independent ones.

    Draws from `generator`, or from the default one.
    """

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: Any = None,
    ) -> None:
        self.data_source = data_source
        self.replacement = replacement
        self.num_samples = len(data_source) if num_samples is None else num_samples
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        n = len(self.data_source)
        if n == 0:
            return
        if self.replacement:
            drawn = eager.randint(0, n, (self.num_samples,), generator=self.generator)
            yield from drawn.tolist()
            return
        left = self.num_samples
        while left > 0:
            order = eager.randperm(n, generator=self.generator).tolist()
            yield from order[:left]
            left -= n

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(Sampler[int]):
    """The given indices in random order."""

    def __init__(self, indices: Sequence[int], generator: Any = None) -> None:
        self.indices = indices
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        for i in eager.randperm(len(self.indices), generator=self.generator).tolist():
            yield self.indices[i]

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(Sampler[int]):
    """`num_samples` indices, each drawn with probability proportional to its weight.

    Without `replacement` no index comes twice (Efraimidis & Spirakis 2006: the largest
    ``u ** (1 / weight)`` win).
    """

    def __init__(
        self,
        weights: Sequence[float],
        num_samples: int,
        replacement: bool = True,
        generator: Any = None,
    ) -> None:
        self.weights = np.asarray(weights, dtype=np.float64)
        self.num_samples = num_samples
        self.replacement = replacement
        self.generator = generator
        w = self.weights
        enough = np.count_nonzero(w) >= (1 if replacement else num_samples)
        if w.ndim != 1 or not np.isfinite(w).all() or (w < 0).any() or not enough:
            raise helpful(
                ArgumentError, "WeightedRandomSampler", "the weights cannot be drawn from",
                expected="finite weights >= 0, as many positive ones as distinct draws",
                given=f"{w.size} weights, {np.count_nonzero(w > 0)} of them positive",
            )  # fmt: skip

    def __iter__(self) -> Iterator[int]:
        n = self.num_samples if self.replacement else len(self.weights)
        drawn = eager.rand(n, dtype=eager.float64, generator=self.generator).numpy()
        if self.replacement:
            sums = np.cumsum(self.weights)
            return iter(np.searchsorted(sums, drawn * sums[-1], side="right").tolist())
        with np.errstate(divide="ignore"):
            keys = np.log(drawn) / self.weights  # -inf for weight 0
        return iter(np.argsort(-keys, kind="stable")[: self.num_samples].tolist())

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Lists of `batch_size` indices of another sampler; the last may be shorter or dropped."""

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool) -> None:
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size <= 0:
            raise helpful(
                ArgumentError, "BatchSampler", "batch_size is not a positive integer",
                expected="batch_size >= 1", given=repr(batch_size),
            )  # fmt: skip
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in self.sampler:
            batch.append(index)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def __len__(self) -> int:
        n = len(self.sampler)  # type: ignore[arg-type]
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
