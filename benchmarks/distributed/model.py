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


INLINE = 8192
"""Bytes that travel with the opening round of a collective; more follow in messages of their
own."""

TRAFFIC: dict[str, Callable[[int], float]] = {
    "one_shot": lambda n: 2.0 * (n - 1),
    "direct": lambda n: 3.0 * (n - 1) / n,
    "ring": lambda n: 3.0 * (n - 1) / n,
    "halving_doubling": lambda n: (
        3.0 * (1 - 0.5 ** math.floor(math.log2(n))) + (0.0 if n & (n - 1) == 0 else 3.0)
    ),
}
"""Bytes a rank sends and combines, per byte of the vector: the closed forms' factors."""

KNOTS = [2.0**k for k in (15, 17, 19, 21, 22, 23)]
"""Bytes of a vector at which another regime begins.  Within one, time is affine in the size: its
bytes come from the same caches."""


@dataclass
class Fit:
    """Parameters of one machine.

    Attributes:
        ranks: the numbers of ranks there are parameters for.
        alpha: per algorithm, for each of `ranks`: seconds of all its messages when they carry
            nothing.  Ranks beyond the number of cores wait for each other's turns.
        follow: the same, of the messages beyond `INLINE` bytes.
        beta: per algorithm, for each of `ranks`: seconds a byte sent and combined, in the regimes
            that `KNOTS` separate.
    """

    ranks: list[int]
    alpha: dict[str, list[float]]
    follow: dict[str, list[float]]
    beta: dict[str, list[list[float]]]

    def predict(self, algorithm: str, ranks: int, size: int) -> float:
        """Seconds of an all_reduce."""
        i = self.ranks.index(ranks)
        x = [self.alpha[algorithm][i], self.follow[algorithm][i], *self.beta[algorithm][i]]
        return float(np.dot(_terms(algorithm, ranks, size), x))


def _terms(algorithm: str, ranks: int, size: int) -> Array:
    """What alpha, follow and each beta are multiplied by."""
    edges = np.array([0.0, *KNOTS, math.inf])
    regimes = np.clip(size, edges[:-1], edges[1:]) - edges[:-1]
    return np.array([1.0, size > INLINE, *TRAFFIC[algorithm](ranks) * regimes])


def fit(points: Sequence[Point]) -> Fit:
    """The parameters, none negative, that make the squares of relative errors least."""
    from scipy.optimize import nnls

    names = sorted({p.algorithm for p in points})
    ranks = sorted({p.ranks for p in points})
    found = Fit(ranks, {}, {}, {})
    for name in names:
        rows = []
        for n in ranks:
            mine = [p for p in points if (p.algorithm, p.ranks) == (name, n)]
            relative = np.stack([_terms(*p[:3]) / p.seconds for p in mine])
            rows.append(nnls(relative, np.ones(len(mine)))[0].tolist())
        found.alpha[name] = [x[0] for x in rows]
        found.follow[name] = [x[1] for x in rows]
        found.beta[name] = [x[2:] for x in rows]
    return found


def errors(model: Fit, points: Sequence[Point]) -> list[float]:
    """Relative errors of the predictions."""
    return [abs(model.predict(*p[:3]) / p.seconds - 1) for p in points]
