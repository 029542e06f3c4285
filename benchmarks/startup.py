"""Import time against PyTorch's, and the memory of a long tape: each in fresh processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from benchmarks.harness import RESULTS, machine

CHAIN = """
import resource, sys
import eager
n = int(sys.argv[1])
x = eager.ones(4, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
y = x
for _ in range(n):
    y = y + 1.0
y.sum().backward()
assert x.grad.tolist() == [1.0] * 4
del y
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def _import_seconds(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def run(command: str, rounds: int) -> None:
    """Measures both and writes results/startup.json."""
    seconds: dict[str, list[float]] = {"eager": [], "torch": [], "nothing": []}
    modules = {"eager": "eager", "torch": "torch", "nothing": "sys"}
    for _ in range(rounds):
        for name, module in modules.items():
            seconds[name].append(_import_seconds(module))
    median = {name: statistics.median(v) for name, v in seconds.items()}
    ratio = median["eager"] / median["torch"]
    print(f"import eager / import torch: {ratio:.3f} (interpreter included)")
    memory = {}
    for n in (10_000, 100_000, 1_000_000):
        out = subprocess.run(
            [sys.executable, "-c", CHAIN, str(n)], check=True, capture_output=True, text=True
        )
        memory[n] = int(out.stdout)
        print(f"chain of {n} nodes: peak {memory[n] / n:.0f} bytes per node")
    record = {
        "suite": "startup",
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "import_median_seconds": median,
        "import_ratio_to_torch": ratio,
        "chain_peak_bytes": memory,
        "rounds": seconds,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "startup.json").write_text(json.dumps(record, indent=1) + "\n")
