"""Buckets: the memory that gradients live in and are reduced in.

A bucket is one piece of a group's static memory (`Backend.allocate`).  The gradients of its
parameters are views of it, each starting at a multiple of 64 bytes; one plan reduces all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import eager
from eager import Tensor
from eager.distributed.backends.base import Backend, Buffer, ReduceOp
from eager.distributed.graph import StaticPlan

ALIGNMENT = 64  # bytes: of gradients within a bucket
FIRST_BUCKET = 1 << 20  # bytes: small, so that the first reduction starts early


class Bucket:
    """Gradients of one dtype that are reduced together.

    Attributes:
        index: its place in the order in which buckets are reduced.
        members: numbers of its parameters, in the order in which their gradients arrive.
        places: for each of them (first element, shape) in `flat`.
        flat: one-dimensional, all of the memory; what lies between gradients is zero.
        views: the gradients.
        static: the plan that averages `flat` over the ranks, in place.
    """

    def __init__(
        self, index: int, members: Sequence[int], parameters: Sequence[Tensor], backend: Backend
    ) -> None:
        self.index = index
        self.members = tuple(members)
        first = parameters[self.members[0]]
        self.dtype, item = first.dtype, first.itemsize
        step = max(1, ALIGNMENT // item)
        self.places: list[tuple[int, tuple[int, ...]]] = []
        end = 0
        for i in self.members:
            self.places.append((end, tuple(parameters[i].shape)))
            end += -(-parameters[i].numel() // step) * step
        self.count = max(end, step)
        self.nbytes = self.count * item
        self.buffer: Buffer = backend.allocate(self.nbytes)
        self.flat = self.buffer.tensor((self.count,), self.dtype)
        self.views = [
            self.flat[start : start + math.prod(shape)].reshape(shape)
            for start, shape in self.places
        ]
        plan = backend.plan_all_reduce(self.buffer, 0, self.count, self.dtype, ReduceOp.AVG)
        self.static = StaticPlan(plan, self.flat)


def assign(parameters: Sequence[Tensor], order: Iterable[int], limit: int) -> list[tuple[int, ...]]:
    """Cuts `order` into buckets of one dtype and at most `limit` bytes (or one parameter); the
    first of each dtype is small.  Buckets are in the order in which they are complete."""
    open_: dict[eager.dtype, tuple[list[int], int]] = {}
    done: list[tuple[int, ...]] = []
    started: set[eager.dtype] = set()
    for i in order:
        p = parameters[i]
        members, size = open_.get(p.dtype, ([], 0))
        members, size = [*members, i], size + p.nbytes
        if size >= (limit if p.dtype in started else min(limit, FIRST_BUCKET)):
            done.append(tuple(members))
            started.add(p.dtype)
            open_.pop(p.dtype, None)
        else:
            open_[p.dtype] = members, size
    done.extend(tuple(members) for members, _ in open_.values())
    return done
