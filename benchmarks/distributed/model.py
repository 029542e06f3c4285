"""An alpha-beta model of the all_reduce algorithms: closed forms, a simulation, and a fit.

A message costs ``alpha`` seconds plus ``beta`` seconds a byte; combining costs ``gamma`` seconds a
byte (Hockney 1994; Thakur, Rabenseifner and Gropp 2005 give the closed forms below).  The
simulation follows every message of every rank; without jitter it gives the closed forms, and with
jitter it shows what waiting for the slowest costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Network(NamedTuple):
    """Seconds a message, a byte sent, a byte combined."""

    alpha: float
    beta: float
    gamma: float


# --- closed forms -------------------------------------------------------------------------------


def one_shot(n: int, size: float, net: Network) -> float:
    """Everyone sends everything to everyone, one after another, and adds it all up."""
    return 0.0 if n == 1 else net.alpha + (n - 1) * size * (net.beta + net.gamma)


def ring(n: int, size: float, net: Network) -> float:
    """n - 1 steps of partial sums and n - 1 of results, each of size / n."""
    share = (n - 1) / n * size
    return 2 * (n - 1) * net.alpha + 2 * share * net.beta + share * net.gamma


def halving_doubling(n: int, size: float, net: Network) -> float:
    """Rabenseifner's; ranks beyond a power of two first add theirs to a partner's, which sends
    the result at the end."""
    power = 1 << (n.bit_length() - 1)
    share = (power - 1) / power * size
    steps = 2 * math.log2(power)
    total = steps * net.alpha + 2 * share * net.beta + share * net.gamma
    if power < n:
        total += 2 * net.alpha + 2 * size * net.beta + size * net.gamma
    return total


def hierarchical(n: int, size: float, net: Network, local: int, inside: Network) -> float:
    """Within hosts of `local` ranks each rank adds up its share; rings between hosts over the
    shares; then all gather within hosts."""
    part = (local - 1) / local * size
    within = 2 * inside.alpha + 2 * part * inside.beta + part * inside.gamma
    return within + ring(n // local, size / local, net)


CLOSED: dict[str, Callable[[int, float, Network], float]] = {
    "one_shot": one_shot, "ring": ring, "halving_doubling": halving_doubling,
}  # fmt: skip


# --- simulation ---------------------------------------------------------------------------------


class Round(NamedTuple):
    """Every rank r with ``to[r] >= 0`` sends `size` bytes there.  Who gets something combines
    `combine` bytes once it has come, before the next round; `wait` False: waits for nothing yet."""

    to: Array
    size: float
    combine: float
    wait: bool = True


def rounds(algorithm: str, n: int, size: float) -> Iterator[Round]:
    """The messages of an algorithm."""
    ranks = np.arange(n)
    if algorithm == "one_shot":
        for step in range(1, n):
            last = step == n - 1
            yield Round((ranks + step) % n, size, (n - 1) * size if last else 0.0, last)
    elif algorithm == "ring":
        for step in range(2 * (n - 1)):
            yield Round((ranks + 1) % n, size / n, size / n if step < n - 1 else 0.0)
    elif algorithm == "halving_doubling":
        power = 1 << (n.bit_length() - 1)
        extra = n - power
        inner = ranks < power
        if extra:
            yield Round(np.where(inner, -1, ranks - power), size, size)
        distances = [1 << k for k in range(power.bit_length() - 1)]
        sizes = [size / 2 ** (k + 1) for k in range(len(distances))]
        for distance, part in zip(distances, sizes, strict=True):
            yield Round(np.where(inner, ranks ^ distance, -1), part, part)
        for distance, part in zip(reversed(distances), reversed(sizes), strict=True):
            yield Round(np.where(inner, ranks ^ distance, -1), part, 0.0)
        if extra:
            yield Round(np.where(ranks < extra, ranks + power, -1), size, 0.0)
    else:
        raise ValueError(f"no simulation of {algorithm!r}")


def simulate(
    algorithm: str, n: int, size: float, net: Network, jitter: float = 0.0, seed: int = 0
) -> float:
    """Seconds until the last rank is done.

    Args:
        algorithm: a key of `CLOSED`.
        n: ranks.
        size: bytes.
        net: the cost of messages.
        jitter: every message's latency is multiplied by a lognormal number of this sigma.
        seed: of the jitter.
    """
    rng = np.random.default_rng(seed)
    clock, pending = np.zeros(n), np.zeros(n)
    for step in rounds(algorithm, n, size):
        sends = step.to >= 0
        to = step.to[sends]
        latency = net.alpha * rng.lognormal(0.0, jitter, to.size) if jitter else net.alpha
        clock[sends] += step.size * net.beta
        pending[to] = np.maximum(pending[to], clock[sends] + latency)
        if step.wait:
            clock[to] = np.maximum(clock[to], pending[to]) + step.combine * net.gamma
    return float(clock.max())


# --- the fit ------------------------------------------------------------------------------------


class Point(NamedTuple):
    """One measurement: the median seconds of an all_reduce on one host."""

    algorithm: str
    ranks: int
    size: int
    seconds: float


MESSAGES: dict[str, Callable[[int], float]] = {
    "one_shot": lambda _: 1.0,
    "direct": lambda _: 2.0,
    "ring": lambda n: 2.0 * (n - 1),
    "halving_doubling": lambda n: 2.0 * math.ceil(math.log2(n)),
}
"""Messages in a row."""

TRAFFIC: dict[str, Callable[[int], float]] = {
    "one_shot": lambda n: 2.0 * (n - 1),
    "direct": lambda n: 3.0 * (n - 1) / n,
    "ring": lambda n: 3.0 * (n - 1) / n,
    "halving_doubling": lambda n: (
        3.0 * (1 - 0.5 ** math.floor(math.log2(n))) + (0.0 if n & (n - 1) == 0 else 3.0)
    ),
}
"""Bytes a rank moves or combines, per byte of the vector: what it sends, and what it combines."""

KNOTS = np.log2(np.array([2**14, 2**17, 2**20, 2**22, 2**24, 2**26]))
"""Log of the bytes of all ranks' vectors at which the time per byte is fitted: it depends on
which cache holds them."""


@dataclass
class Fit:
    """Parameters of one machine.

    Attributes:
        cores: ranks beyond them take turns.
        ranks: the numbers of ranks there are latencies for.
        alpha: seconds a message, for each of `ranks`: more ranks than cores wait for each other.
        call: seconds of a call that has nothing to do, for each of `ranks`.
        beta: seconds a byte at each of `KNOTS`.
        factor: of each algorithm, how much dearer its bytes are than those of the first.
    """

    cores: int
    ranks: list[int]
    alpha: list[float]
    call: list[float]
    beta: list[float]
    factor: dict[str, float]

    def predict(self, algorithm: str, ranks: int, size: int) -> float:
        """Seconds of an all_reduce."""
        i = self.ranks.index(ranks)
        per_byte = float(np.exp(np.interp(math.log2(ranks * size), KNOTS, np.log(self.beta))))
        turns = max(1.0, ranks / self.cores)
        moved = TRAFFIC[algorithm](ranks) * size * per_byte * self.factor[algorithm] * turns
        return self.call[i] + MESSAGES[algorithm](ranks) * self.alpha[i] + moved


def fit(points: Sequence[Point], cores: int) -> Fit:
    """The parameters that make relative errors least (squares of logarithms)."""
    from scipy.optimize import least_squares

    names = sorted({p.algorithm for p in points})
    ranks = sorted({p.ranks for p in points})
    k = len(ranks)

    def unpack(x: Array) -> Fit:
        e = np.exp(x)
        factors = [1.0, *e[2 * k + KNOTS.size :]]
        return Fit(
            cores, ranks, list(e[:k]), list(e[k : 2 * k]), list(e[2 * k : 2 * k + KNOTS.size]),
            dict(zip(names, factors, strict=True)),
        )  # fmt: skip

    def residuals(x: Array) -> Array:
        model = unpack(x)
        return np.array(
            [math.log(model.predict(*p[:3]) / p.seconds) for p in points], dtype=np.float64
        )

    start = np.log(
        [1e-6] * k + [1e-7] * k + [1e-10] * KNOTS.size + [1.0] * (len(names) - 1)
    )  # fmt: skip
    found = least_squares(residuals, start, loss="soft_l1", f_scale=0.1)
    return unpack(found.x)


def errors(model: Fit, points: Sequence[Point]) -> list[float]:
    """Relative errors of the predictions."""
    return [abs(model.predict(*p[:3]) / p.seconds - 1) for p in points]
