"""How all_reduce scales: ``python -m benchmarks scale``.

Fits the model of `model.py` to this machine (2 to 4 ranks over shared memory, every other size),
compares its predictions with the sizes left out, and tabulates *simulated* all_reduces of 8 to
4096 nodes for the latency and bandwidth of this machine's TCP and of an assumed network.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import distributed
from benchmarks.distributed import model
from benchmarks.distributed.model import Network, Point
from benchmarks.harness import RESULTS, machine

NODES = [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
SIZES = [4096, 1 << 20, 40 << 20]
LOCAL = 8
JITTER = 0.3  # sigma of the lognormal latency
BAR = 0.15
LAUNCHES = 7
ASSUMED = Network(alpha=2e-6, beta=1 / 25e9, gamma=1 / 20e9)  # 200 Gb/s RDMA, one core adds


def measure(transport: str, ranks: list[int], rounds: int) -> list[Point]:
    """Medians over `LAUNCHES` jobs, which take turns: where the system happens to put processes
    and memory lasts as long as a job."""
    seconds: dict[tuple[str, int, int], list[float]] = {}
    for launch in range(LAUNCHES):
        for n in ranks:
            print(f"-- {transport}, {n} ranks, job {launch + 1} of {LAUNCHES}", flush=True)
            with distributed.forced(transport):
                found = distributed.ranks(n, "algorithms", str(max(1, rounds // LAUNCHES)))
            for size, row in found.items():
                for name, median in row["median_seconds"].items():
                    seconds.setdefault((name, n, int(size)), []).append(median)
    return [Point(*key, statistics.median(medians)) for key, medians in seconds.items()]


def fit_network(points: list[Point]) -> Network:
    """Latency and time per byte of two ranks, from the least and the greatest one_shot and ring;
    combining is taken to cost what sending does, for both are one core's copies here."""
    one = [p for p in points if p.algorithm == "one_shot"]
    ring = [p for p in points if p.algorithm == "ring"]
    alpha = min(p.seconds for p in one)
    last = max(ring, key=lambda p: p.size)
    per_byte = (last.seconds - 2 * alpha) / (1.5 * last.size)
    return Network(alpha, per_byte, per_byte)


def table(net: Network, inside: Network) -> dict[str, Any]:
    """Simulated seconds by size, nodes and algorithm, without jitter and with it.  One rank a
    node; with `LOCAL` ranks a node, which share memory, the hierarchical closed form."""
    rows: dict[str, Any] = {}
    for size in SIZES:
        for n in NODES:
            row = {}
            for name, closed in model.CLOSED.items():
                calm = model.simulate(name, n, size, net)
                assert abs(calm / closed(n, size, net) - 1) < 1e-6
                row[name] = {
                    "simulated": calm,
                    "with jitter": model.simulate(name, n, size, net, JITTER),
                }
            levels = model.hierarchical(n * LOCAL, size, net, LOCAL, inside)
            row[f"hierarchical, {LOCAL} ranks a node"] = {"closed form": levels}
            rows[f"{size} bytes, {n} nodes"] = row
    return rows


def run(command: str, rounds: int) -> Path:
    """Measures, fits, simulates; writes ``results/scale.json`` and a plot."""
    points = measure("shm", [2, 3, 4], rounds)
    tcp = fit_network(measure("tcp", [2], rounds))
    sizes = sorted({p.size for p in points})
    known = set(sizes[::2]) | {sizes[-1]}
    fitted = model.fit([p for p in points if p.size in known])
    unseen = [p for p in points if p.size not in known]
    record: dict[str, Any] = {
        "suite": "scale", "command": command, "date": time.strftime("%Y-%m-%d"),
        "machine": machine(), "fit": vars(fitted), "points": [list(p) for p in points],
        "held_out": {}, "simulated": {},
    }  # fmt: skip
    for n in (2, 3, 4):
        wrong = model.errors(fitted, [p for p in unseen if p.ranks == n])
        within = sum(e <= BAR for e in wrong) / len(wrong)
        record["held_out"][str(n)] = {
            "median_error": statistics.median(wrong), "worst_error": max(wrong),
            "within_15_percent": within,
        }  # fmt: skip
        print(f"{n} ranks, sizes left out: median error {statistics.median(wrong):.1%}, "
              f"worst {max(wrong):.1%}, {within:.0%} within {BAR:.0%}")  # fmt: skip
    per_byte = fitted.beta["ring"][0][len(model.KNOTS) // 2]
    inside = Network(fitted.alpha["ring"][0] / 2, per_byte, per_byte)
    for name, net in (("this machine's tcp", tcp), ("assumed 200 Gb/s RDMA", ASSUMED)):
        record["simulated"][name] = {
            "network": net._asdict(), "inside a node": inside._asdict(),
            "all_reduce": table(net, inside),
        }  # fmt: skip
    path = RESULTS / "scale.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    draw(path.with_suffix(".png"), fitted, points, record["simulated"]["assumed 200 Gb/s RDMA"])
    return path


def draw(path: Path, fitted: model.Fit, points: list[Point], simulated: dict[str, Any]) -> None:
    """Left: measured and predicted times of four ranks.  Right: simulated times of a DDP bucket."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for i, name in enumerate(fitted.beta):
        mine = [p for p in points if p.algorithm == name and p.ranks == 4]
        x = [p.size for p in mine]
        left.loglog(x, [p.seconds * 1e6 for p in mine], "o", ms=4, color=f"C{i}")
        left.loglog(x, [fitted.predict(*p[:3]) * 1e6 for p in mine], color=f"C{i}", label=name)
    left.set(xlabel="bytes", ylabel="us", title="4 ranks, 2 cores: measured (dots), model")
    for i, name in enumerate(model.CLOSED):
        rows = [simulated["all_reduce"][f"{SIZES[-1]} bytes, {n} nodes"][name] for n in NODES]
        right.loglog(NODES, [r["simulated"] * 1e3 for r in rows], color=f"C{i}", label=name)
        right.loglog(NODES, [r["with jitter"] * 1e3 for r in rows], ":", color=f"C{i}")
    right.set(xlabel="nodes", ylabel="ms",
              title="40 MiB, simulated, 200 Gb/s assumed (dotted: jitter)")  # fmt: skip
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
