"""How long training stands still when a rank is killed: launcher, new processes, new first step.

Two ranks run the script of the Kubernetes tutorial under the elastic launcher.  One kills itself;
the clock runs from there until both ranks have done their first step after the newest checkpoint.
That includes noticing the death, so it is an upper bound of the time since detection.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import RESULTS, machine

SCRIPT = Path(__file__).parent.parent / "tutorials" / "kubernetes" / "train.py"
BAR = 2.0  # seconds
STEPS, DIES, EVERY = 60, 37, 10


def _train(folder: Path, *options: str) -> str:
    launcher = [sys.executable, "-m", "eager.distributed.run", "--nproc-per-node", "2"]
    words = ["--steps", str(STEPS), "--every", str(EVERY), "--checkpoints", str(folder)]
    done = subprocess.run(
        [*launcher, "--max-restarts", "1", str(SCRIPT), *words, *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"train.py failed\n{done.stdout}{done.stderr}")
    return done.stdout


def _times(output: str, event: str) -> list[float]:
    """When lines of the script's output were written, seconds."""
    return [float(t) for t in re.findall(rf"^([\d.]+) rank \d+: {event}\b", output, re.MULTILINE)]


def _loss(output: str) -> str:
    found = re.search(r"final loss \S+ \((\S+)\)", output)
    assert found, output
    return found[1]


def run(command: str, rounds: int) -> None:
    """Measures and writes results/elastic.json."""
    parts: dict[str, list[float]] = {"restart": [], "resume": [], "total": []}
    with tempfile.TemporaryDirectory() as place:
        undisturbed = _loss(_train(Path(place) / "undisturbed"))
        identical = True
        for i in range(rounds):
            output = _train(Path(place) / str(i), "--die-at-step", str(DIES))
            (died,) = _times(output, f"dies after step {DIES}")
            started = max(t for t in _times(output, "starts at step") if t > died)
            stepped = max(t for t in _times(output, "did step") if t > died)
            parts["restart"].append(started - died)
            parts["resume"].append(stepped - started)
            parts["total"].append(stepped - died)
            identical &= _loss(output) == undisturbed
    worst = max(parts["total"])
    record = {
        "suite": "elastic",
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "ranks": 2,
        "bar_seconds": BAR,
        "bar_met": worst <= BAR,
        "loss_bit_identical": identical,
        "median_seconds": {name: statistics.median(v) for name, v in parts.items()},
        "worst_seconds": worst,
        "rounds": parts,
    }
    median = record["median_seconds"]["total"]
    print(f"kill to first new step of all ranks: median {median:.2f} s, worst {worst:.2f} s")
    print(f"final loss bit-identical to an undisturbed run: {identical}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "elastic.json").write_text(json.dumps(record, indent=1) + "\n")
