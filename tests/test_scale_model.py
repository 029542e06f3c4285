"""The alpha-beta model agrees with itself: simulation against closed forms, fit against truth."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).resolve().parents[1] / "benchmarks/distributed/model.py"
SPEC = importlib.util.spec_from_file_location("scale_model", FILE)
assert SPEC is not None and SPEC.loader is not None
model = importlib.util.module_from_spec(SPEC)
sys.modules["scale_model"] = model
SPEC.loader.exec_module(model)
Network, Point = model.Network, model.Point

NET = Network(alpha=3e-6, beta=4e-11, gamma=2e-11)


@pytest.mark.parametrize("algorithm", sorted(model.CLOSED))
@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 13, 64, 100, 512])
@pytest.mark.parametrize("size", [0, 4096, 1 << 24])
def test_without_jitter_the_simulation_gives_the_closed_form(algorithm, n, size):
    simulated = model.simulate(algorithm, n, size, NET)
    assert simulated == pytest.approx(model.CLOSED[algorithm](n, size, NET), rel=1e-9)


@pytest.mark.parametrize("algorithm", sorted(model.CLOSED))
def test_jitter_costs_time(algorithm):
    calm = model.simulate(algorithm, 64, 4096, NET)
    assert model.simulate(algorithm, 64, 4096, NET, jitter=0.5) > calm


def test_every_message_arrives_where_the_algorithm_needs_it():
    """Following the messages of the ring, every rank's number reaches every rank."""
    n = 6
    known = [{r} for r in range(n)]
    for step in model.rounds("ring", n, 1.0):
        before = [set(k) for k in known]
        for source, to in enumerate(step.to):
            known[to] |= before[source]
    assert all(k == set(range(n)) for k in known)


def test_levels_of_one_rank_are_a_ring_and_save_messages_between_hosts():
    inside = Network(alpha=1e-7, beta=2e-11, gamma=2e-11)
    flat = model.ring(64, 1 << 20, NET)
    assert model.hierarchical(64, 1 << 20, NET, 1, inside) == pytest.approx(
        flat + 2 * inside.alpha, rel=1e-9
    )
    assert model.hierarchical(64, 1 << 20, NET, 8, inside) < flat / 2


def test_the_fit_finds_what_made_the_points():
    names = ("direct", "one_shot", "ring")
    truth = model.Fit(
        [2, 4], {a: [4e-7 * i, 3e-6 * i] for i, a in enumerate(names, 1)},
        {a: [2e-7, 1e-6] for a in names},
        {a: [[k * x for x in (3e-11, 4e-11, 4e-11, 5e-11, 7e-11, 9e-11, 2e-10)] for k in (1, 2)]
         for a in names},
    )  # fmt: skip
    points = [
        Point(a, n, 1 << b, truth.predict(a, n, 1 << b))
        for a in names for n in truth.ranks for b in range(10, 26)
    ]  # fmt: skip
    found = model.fit([p for p in points if p.size.bit_length() % 2 or p.size > 1 << 21])
    assert np.max(model.errors(found, points)) < 1e-6
