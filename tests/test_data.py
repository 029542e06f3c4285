"""Datasets, samplers and the loader."""

from typing import NamedTuple

import numpy as np
import pytest

import eager
from eager.errors import ArgumentError, EagerError, IndexOutOfRange, ShapeError
from eager.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)


def generator(seed=0):
    return eager.Generator().manual_seed(seed)


class Squares(Dataset):
    def __init__(self, n):
        self.n = n

    def __getitem__(self, i):
        return i * i

    def __len__(self):
        return self.n


class Stream(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(range(self.n))

    def __len__(self):
        return self.n


def test_tensor_dataset():
    data = TensorDataset(eager.arange(6).reshape(3, 2), eager.tensor([7, 8, 9]))
    assert len(data) == 3
    x, y = data[1]
    assert x.tolist() == [2, 3] and y.item() == 8
    x, y = data.batch([2, 0])
    assert x.tolist() == [[4, 5], [0, 1]] and y.tolist() == [9, 7]
    with pytest.raises(ShapeError):
        TensorDataset(eager.ones(3), eager.ones(2))
    with pytest.raises(ShapeError):
        TensorDataset()
    with pytest.raises((EagerError, IndexError)):
        data[3]


def test_subset_concat_and_base():
    data = Squares(10)
    subset = Subset(data, [3, 1])
    assert len(subset) == 2 and subset[0] == 9
    joined = data + subset
    assert isinstance(joined, ConcatDataset) and len(joined) == 12
    assert joined[11] == 1 and joined[-1] == 1 and joined[0] == 0
    with pytest.raises(IndexOutOfRange):
        joined[12]
    with pytest.raises(NotImplementedError):
        Dataset()[0]
    nested = Subset(Subset(TensorDataset(eager.arange(10)), [5, 6, 7]), [2, 0])
    assert nested.batch([0, 1])[0].tolist() == [7, 5]
    assert [b[0].tolist() for b in DataLoader(nested, batch_size=2)] == [[7, 5]]


def test_random_split():
    parts = random_split(Squares(10), [7, 3], generator())
    assert [len(p) for p in parts] == [7, 3]
    assert sorted(i for p in parts for i in p.indices) == list(range(10))
    assert parts[0].indices != list(range(7))
    again = random_split(Squares(10), [7, 3], generator())
    assert [p.indices for p in again] == [p.indices for p in parts]
    assert [len(p) for p in random_split(Squares(10), [0.5, 0.25, 0.25])] == [6, 2, 2]
    with pytest.raises(ArgumentError):
        random_split(Squares(10), [7, 4])


def test_batches():
    loader = DataLoader(Squares(7), batch_size=3)
    assert [b.tolist() for b in loader] == [[0, 1, 4], [9, 16, 25], [36]]
    assert len(loader) == 3
    loader = DataLoader(Squares(7), batch_size=3, drop_last=True)
    assert [b.tolist() for b in loader] == [[0, 1, 4], [9, 16, 25]] and len(loader) == 2
    assert list(DataLoader(Squares(3), batch_size=None)) == [0, 1, 4]
    assert list(DataLoader(Squares(4), 2, collate_fn=sum)) == [1, 13]


def test_tensor_batches_are_what_collating_gives():
    data = TensorDataset(eager.randn(10, 3), eager.arange(10))
    whole = list(DataLoader(data, batch_size=4))
    collated = list(DataLoader(data, batch_size=4, collate_fn=default_collate))
    for a, b in zip(whole, collated, strict=True):
        assert type(a) is type(b) is list
        assert [x.tolist() for x in a] == [x.tolist() for x in b]


def test_shuffle():
    def epochs(seed):
        loader = DataLoader(Squares(20), batch_size=20, shuffle=True, generator=generator(seed))
        return [next(iter(loader)).tolist() for _ in range(2)]

    first, second = epochs(0)
    assert sorted(first) == sorted(second) == [i * i for i in range(20)]
    assert first != second
    assert epochs(0) == [first, second] and epochs(1) != [first, second]
    eager.manual_seed(5)
    drawn = [b.item() for b in DataLoader(Squares(20), shuffle=True)]
    eager.manual_seed(5)
    assert [b.item() for b in DataLoader(Squares(20), shuffle=True)] == drawn


def test_samplers():
    data = Squares(5)
    assert list(SequentialSampler(data)) == [0, 1, 2, 3, 4]
    drawn = list(RandomSampler(data, replacement=True, num_samples=100, generator=generator()))
    assert len(drawn) == 100 and set(drawn) == set(range(5))
    repeated = list(RandomSampler(data, num_samples=12, generator=generator()))
    assert sorted(repeated[:5]) == list(range(5)) and len(repeated) == 12
    assert list(RandomSampler(Squares(0))) == []
    assert sorted(SubsetRandomSampler([4, 2, 9], generator())) == [2, 4, 9]
    assert list(BatchSampler(range(5), 2, False)) == [[0, 1], [2, 3], [4]]
    assert len(BatchSampler(range(5), 2, True)) == 2
    with pytest.raises(ArgumentError):
        BatchSampler(range(5), 0, False)
    loader = DataLoader(data, sampler=[3, 1], batch_size=2)
    assert [b.tolist() for b in loader] == [[9, 1]]
    loader = DataLoader(data, batch_sampler=[[0], [1, 2]])
    assert [b.tolist() for b in loader] == [[0], [1, 4]] and len(loader) == 2


def test_weighted_sampler():
    drawn = list(WeightedRandomSampler([1, 0, 3], 4000, generator=generator()))
    counts = np.bincount(drawn, minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.25, 0, 0.75], atol=0.03)
    for seed in range(20):
        distinct = list(WeightedRandomSampler([1, 0, 3, 2], 3, False, generator(seed)))
        assert sorted(distinct) == [0, 2, 3]
    with pytest.raises(ArgumentError):
        WeightedRandomSampler([1, 0], 2, replacement=False)
    with pytest.raises(ArgumentError):
        WeightedRandomSampler([-1, 2], 2)


def test_iterable_datasets():
    assert [b.tolist() for b in DataLoader(Stream(5), 2)] == [[0, 1], [2, 3], [4]]
    assert [b.tolist() for b in DataLoader(Stream(5), 2, drop_last=True)] == [[0, 1], [2, 3]]
    assert list(DataLoader(Stream(2), None)) == [0, 1]
    assert len(DataLoader(Stream(5), 2)) == 3
    with pytest.raises(ArgumentError):
        DataLoader(Stream(5), shuffle=True)


class Point(NamedTuple):
    x: float
    label: str


def test_collate():
    assert default_collate([1, 2]).dtype == eager.int64
    assert default_collate([1.5, 2]).dtype == eager.float64
    assert default_collate([True, False]).dtype == eager.bool
    assert default_collate(["a", "b"]) == ["a", "b"]
    assert default_collate([eager.ones(2), eager.zeros(2)]).shape == (2, 2)
    assert default_collate([np.ones(2, np.float32)] * 3).dtype == eager.float32
    assert default_collate([np.float64(1), np.float64(2)]).tolist() == [1, 2]
    nested = default_collate([{"a": (1, [2.0])}, {"a": (3, [4.0])}])
    assert nested["a"][0].tolist() == [1, 3] and nested["a"][1][0].tolist() == [2, 4]
    points = default_collate([Point(1.0, "a"), Point(2.0, "b")])
    assert isinstance(points, Point)
    assert points.x.tolist() == [1, 2] and points.label == ["a", "b"]
    with pytest.raises(ArgumentError, match="length"):
        default_collate([(1, 2), (1,)])
    with pytest.raises(ArgumentError, match="object"):
        default_collate([object()])


def test_loader_errors():
    data = Squares(4)
    for options in (
        {"num_workers": 2},
        {"shuffle": True, "sampler": [0]},
        {"batch_sampler": [[0]], "batch_size": 2},
        {"batch_size": None, "drop_last": True},
        {"batch_size": -1},
    ):
        with pytest.raises(ArgumentError):
            DataLoader(data, **options)
