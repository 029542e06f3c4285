"""The harness: times cases of several libraries alternately and compares medians.

Machines are shared and noisy, so no absolute time is quoted alone.  Each library runs in a worker
process of its own (all children of this one), with threads fixed by environment and API before
anything is imported.  For every case the workers take turns, A B A B, for a number of rounds; one
worker runs at a time.  A round is one block of calls, long enough (`BLOCK` seconds) that the clock
and the loop do not matter.  The figure is the ratio of the medians over rounds; the spread is the
10th to 90th percentile of the per-round ratios, which share whatever disturbed the machine.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 0.02
RESULTS = Path(__file__).parent / "results"


class Worker:
    """A library in a process of its own, answering one JSON line per request."""

    def __init__(self, library: str, suite: str, threads: int) -> None:
        # a BLAS kernel pinned from outside would slow some libraries and not others
        pinned = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_DEBUG_CPU_TYPE")
        env = {k: v for k, v in os.environ.items() if k not in pinned}
        for name in ("OMP", "OPENBLAS", "MKL"):
            env[f"{name}_NUM_THREADS"] = str(threads)
        if library == "jax":
            env["JAX_PLATFORMS"] = "cpu"
            if threads == 1:
                env["XLA_FLAGS"] = (
                    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
                )
        self.library = library
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", library, suite, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        self.version: str = self._read()["version"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.library} worker died (exit {self.process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends one request and waits for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


@dataclass
class CaseResult:
    """Seconds per call of each library, one entry a round."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, library: str) -> float:
        """Median seconds per call."""
        return statistics.median(self.seconds[library])

    def ratio(self, subject: str, peer: str) -> tuple[float, float, float]:
        """(subject / peer by medians, 10th and 90th percentile of the per-round ratios)."""
        rounds = [a / b for a, b in zip(self.seconds[subject], self.seconds[peer], strict=True)]
        deciles = statistics.quantiles(rounds, n=10)
        return self.median(subject) / self.median(peer), deciles[0], deciles[-1]


def measure(
    suite: str, cases: list[str], libraries: list[str], threads: int, rounds: int
) -> tuple[list[CaseResult], dict[str, str]]:
    """Runs `cases` of `suite` for each library in turn.  Libraries lacking a case are left out
    of it."""
    workers = {name: Worker(name, suite, threads) for name in libraries}
    results = []
    try:
        for case in cases:
            ready = {n: w.ask(prepare=case, block=BLOCK) for n, w in workers.items()}
            present = [n for n in libraries if ready[n]["present"]]
            result = CaseResult(case, {n: [] for n in present})
            for _ in range(rounds):
                for name in present:
                    result.seconds[name].append(workers[name].ask(run=True)["seconds"])
            results.append(result)
            print(_line(result), flush=True)
        return results, {n: w.version for n, w in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()


def _line(result: CaseResult) -> str:
    subject, *peers = result.seconds
    parts = [f"{result.name:24}{subject} {_time(result.median(subject)):>10}"]
    for peer in peers:
        ratio, low, high = result.ratio(subject, peer)
        time_ = _time(result.median(peer))
        parts.append(f"{peer} {time_:>10} x{ratio:5.2f} [{low:.2f}, {high:.2f}]")
    return "   ".join(parts)


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def machine() -> dict[str, Any]:
    """What the figures were measured on, as far as it matters."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
        "load_before": os.getloadavg()[0],
    }


def save(
    suite: str, command: str, threads: int, results: list[CaseResult], versions: dict[str, str]
) -> Path:
    """Writes ``results/<suite>-<threads>t.json`` with every round's figures."""
    subject = next(iter(versions))
    record = {
        "suite": suite,
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "threads": threads,
        "machine": machine(),
        "versions": versions,
        "cases": {
            r.name: {
                "median_seconds": {n: r.median(n) for n in r.seconds},
                "ratio": {
                    peer: dict(zip(("median", "p10", "p90"), r.ratio(subject, peer), strict=True))
                    for peer in r.seconds
                    if peer != subject
                },
                "rounds": r.seconds,
            }
            for r in results
        },
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{suite}-{threads}t.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
