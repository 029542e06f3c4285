"""Random tensors: Philox 4x32-10, a counter-based generator.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC'11).  The key is the seed.  Element i of a draw uses the counter ``offset + i``, so a stream
depends neither on the number of threads nor on the backend.
"""

from __future__ import annotations

from math import pi
from typing import Any

import numpy as np

import eager
from eager.op import Kind, Promotion, elementwise, structural
from eager.ops.create import full
from eager.samples import calls
from eager.scalar import FLOATS, Expr, Vocabulary

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def _split(x: Expr) -> tuple[Expr, Expr]:
    """(high, low) 32 bits of an int64, as non-negative int64s."""
    return (x >> 32) & _LOW, x & _LOW


def philox(k: Vocabulary, seed: Expr, counter: Expr) -> tuple[Expr, Expr]:
    """Two random 32-bit words, as non-negative int64s."""
    key_high, key_low = _split(seed)
    high, low = _split(counter)
    x = [low, high, k.const(0, seed), k.const(0, seed)]
    for number in range(10):
        keys = [
            (word + number * step) & _LOW
            for word, step in zip((key_low, key_high), _WEYL, strict=True)
        ]
        high0, low0 = _split(x[0] * _MULTIPLIERS[0])
        high1, low1 = _split(x[2] * _MULTIPLIERS[1])
        x = [high1 ^ x[1] ^ keys[0], low1, high0 ^ x[3] ^ keys[1], low0]
    return x[0], x[1]


def _rand(k: Vocabulary, i: Expr, seed: Expr, offset: Expr, dtype: str) -> Expr:
    """As many bits as the dtype's significand holds, so that no result rounds up to 1."""
    a, b = philox(k, seed, offset + i)
    if dtype == "float64":
        return k.cast((a << 21) ^ (b >> 11), dtype) * 2.0**-53
    # through int32, which AVX2 converts
    return k.cast(k.cast(a >> 8, "int32"), "float32") * 2.0**-24


def _randn(k: Vocabulary, i: Expr, seed: Expr, offset: Expr, dtype: str) -> Expr:
    """Box and Muller's transform of a radius in (0, 1] and an angle in [0, 1) turns."""
    a, b = philox(k, seed, offset + i)
    real = dtype if dtype in FLOATS else "float32"
    radius = k.sqrt(k.log(k.cast(a + 1, real) * 2.0**-32) * -2.0)
    return radius * k.cos(k.cast(b, real) * (2 * pi * 2.0**-32))


def _randint(k: Vocabulary, i: Expr, seed: Expr, offset: Expr, low: Expr, high: Expr) -> Expr:
    """low + floor(r * (high - low) / 2^64), for 64 random bits r."""
    a, b = philox(k, seed, offset + i)
    c, d = _split(high - low)
    # the upper half of (a 2^32 + b) (c 2^32 + d), from four products of 32 bits
    middle = a * d + ((b * d >> 32) & _LOW)
    middle_high, middle_low = _split(middle)
    carry = ((b * c + middle_low) >> 32) & _LOW
    return low + a * c + middle_high + carry


def _reference(seed: int, counters: Any) -> tuple[Any, Any]:
    """Philox in NumPy's unsigned integers."""
    u32, u64 = np.uint32, np.uint64
    counters = counters.astype(u64)
    x = [counters.astype(u32), (counters >> u64(32)).astype(u32)]
    x += [np.zeros_like(x[0]), np.zeros_like(x[0])]
    key = [u64(seed % 2**32), u64((seed >> 32) % 2**32)]
    for _ in range(10):
        p = x[0].astype(u64) * u64(0xD2511F53)
        q = x[2].astype(u64) * u64(0xCD9E8D57)
        x = [
            (q >> u64(32)).astype(u32) ^ x[1] ^ u32(key[0]),
            q.astype(u32),
            (p >> u64(32)).astype(u32) ^ x[3] ^ u32(key[1]),
            p.astype(u32),
        ]
        key = [(key[0] + u64(0x9E3779B9)) % u64(2**32), (key[1] + u64(0xBB67AE85)) % u64(2**32)]
    return x[0].astype(np.float64), x[1].astype(np.float64)


def _counters(offset: Any, shape: Any) -> Any:
    return int(offset) + np.arange(int(np.prod(shape))).reshape(shape)


def _rand_ref(seed: Any, offset: Any, shape: Any, dtype: str) -> Any:
    a, b = _reference(int(seed), _counters(offset, shape))
    if dtype == "float64":
        return (a * 2.0**21 + np.floor(b / 2**11)) / 2.0**53
    return (np.floor(a / 2**8) / 2**24).astype(dtype)


def _randn_ref(seed: Any, offset: Any, shape: Any, dtype: str) -> Any:
    a, b = _reference(int(seed), _counters(offset, shape))
    return (np.sqrt(-2 * np.log((a + 1) / 2**32)) * np.cos(2 * np.pi * b / 2**32)).astype(dtype)


def _randint_ref(seed: Any, offset: Any, low: int, high: int, shape: Any, dtype: str) -> Any:
    a, b = _reference(int(seed), _counters(offset, shape))
    draws = [(int(x) * 2**32 + int(y)) for x, y in zip(a.flat, b.flat, strict=True)]
    values = [low + (r * (high - low) >> 64) for r in draws]
    return np.array(values, dtype=dtype).reshape(shape)


def _seeds(*attrs: Any) -> Any:
    keys = [(0, 0), (1234, 5), (2**62 + 3, 2**33 + 7), (-5, 2**40)]
    return calls(lambda rng: [(np.array(s), np.array(o), *a) for (s, o) in keys for a in attrs])


rand = elementwise(
    "rand", _rand, attrs="shape: ints, dtype: dtype", indexed=True,
    vjp=None, dtype=Promotion.ATTR, onnx="RandomUniform", ref=_rand_ref,
    samples=_seeds(((3, 4), "float32"), ((5,), "float64"), ((), "float32"), ((0,), "float32")),
    doc="Uniform in [0, 1).",
)  # fmt: skip

randn = elementwise(
    "randn", _randn, attrs="shape: ints, dtype: dtype", indexed=True,
    vjp=None, dtype=Promotion.ATTR, onnx="RandomNormal", ref=_randn_ref,
    samples=_seeds(((3, 40), "float32"), ((50,), "float64")),
    doc="Normal with mean 0 and variance 1.",
)  # fmt: skip

randint = elementwise(
    "randint", _randint, attrs="low: int, high: int, shape: ints, dtype: dtype", indexed=True,
    vjp=None, dtype=Promotion.ATTR, onnx=None, ref=_randint_ref,
    samples=_seeds((0, 10, (3, 4), "int64"), (-(2**61), 2**62, (20,), "int64"),
                   (-3, 4, (20,), "float32"), (5, 2**34 + 6, (20,), "int64")),
    doc="Uniform integers in [low, high).",
)  # fmt: skip


def _permutation(seed: Any, offset: Any, n: int) -> Any:
    """The order of n random 62-bit keys."""
    keys = randint(seed, offset, 0, 2**62, (n,), eager.int64).numpy()
    return eager.from_numpy(np.argsort(keys, kind="stable"))


def _permutation_shape(seed: Any, offset: Any, n: int) -> Any:
    return full(0.0, (n,), eager.int64).to("meta")


randperm = structural(
    "randperm", "seed offset", kind=Kind.OPAQUE, attrs="n: int", impl=_permutation,
    infer=_permutation_shape,
    vjp=None, dtype=Promotion.INDEX, onnx=None,
    ref=lambda seed, offset, n: np.argsort(
        _randint_ref(seed, offset, 0, 2**62, (n,), "int64"), kind="stable"),
    samples=_seeds((7,), (0,)),
    doc="The integers below n in random order.",
)  # fmt: skip
