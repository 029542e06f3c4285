"""Generators of random numbers.

A stream is Philox with a seed as key and a counter that every draw moves on (see
`eager.ops.random_ops`).  Seed and counter live in 0-dim tensors that draws read and write like any
other op, so that compiled programs continue the same stream.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eager import _C, dtypes
from eager.autograd import no_grad
from eager.errors import ArgumentError, ShapeError, helpful
from eager.op import registry
from eager.ops.functions.pieces import stack

if TYPE_CHECKING:
    from eager import Tensor

__all__ = ["Generator", "default_generator", "get_rng_state", "initial_seed", "manual_seed",
           "seed", "set_rng_state"]  # fmt: skip


def _signed(value: int) -> int:
    """An integer in [-2^63, 2^64) as the int64 of the same bits."""
    if not -(2**63) <= value < 2**64:
        raise helpful(
            ArgumentError, "manual_seed", "the seed has more than 64 bits",
            "-2**63 <= seed < 2**64", str(value),
        )  # fmt: skip
    return value - 2**64 if value >= 2**63 else value


class Generator:
    """A stream of random numbers of its own."""

    def __init__(self, device: Any = "cpu") -> None:
        self.device = _C.device(device)
        self._seed = _C.tensor(0, dtype=dtypes.int64)
        self._offset = _C.tensor(0, dtype=dtypes.int64)
        self.manual_seed(67280421310721)

    def manual_seed(self, seed: int) -> Generator:
        """Starts the stream of this seed anew."""
        self._initial = int(seed)
        with no_grad():
            self._seed.fill_(_signed(int(seed)))
            self._offset.fill_(0)
        return self

    def seed(self) -> int:
        """Starts a stream of a seed from the operating system; returns the seed."""
        self.manual_seed(secrets.randbits(63))
        return self._initial

    def initial_seed(self) -> int:
        """The seed the stream was started with."""
        return self._initial

    def get_state(self) -> Tensor:
        """The seed and the counter, as an int64 tensor of shape (2,)."""
        return stack([self._seed, self._offset])

    def set_state(self, state: Tensor) -> Generator:
        """Continues where `get_state` was called."""
        if tuple(state.shape) != (2,) or state.dtype != dtypes.int64:
            raise helpful(
                ShapeError, "set_state", "not a generator's state", "an int64 tensor of shape (2,)",
                f"{state.dtype} of shape {tuple(state.shape)}",
            )  # fmt: skip
        self._initial = int(state[0])
        with no_grad():
            self._seed.copy_(state[0])
            self._offset.copy_(state[1])
        return self

    def draw(self, op: str, shape: Sequence[int], dtype: Any, *attrs: Any) -> Tensor:
        """Runs a random op of the registry and moves the counter on."""
        result: Tensor = _call(op)(self._seed, self._offset, *attrs, tuple(shape), dtype)
        self._advance(math.prod(shape))
        return result

    def permutation(self, n: int) -> Tensor:
        """The integers below n in random order."""
        result: Tensor = _call("randperm")(self._seed, self._offset, n)
        self._advance(n)
        return result

    def _advance(self, count: int) -> None:
        with no_grad():
            self._offset += count


def _call(op: str) -> Any:
    from eager.ops import random_ops

    assert op in registry
    return getattr(random_ops, op)


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Starts the default stream anew; returns its generator."""
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Seeds the default stream from the operating system; returns the seed."""
    return default_generator.seed()


def initial_seed() -> int:
    """The seed the default stream was started with."""
    return default_generator.initial_seed()


def get_rng_state() -> Tensor:
    """The state of the default stream."""
    return default_generator.get_state()


def set_rng_state(state: Tensor) -> None:
    """Continues the default stream where `get_rng_state` was called."""
    default_generator.set_state(state)
