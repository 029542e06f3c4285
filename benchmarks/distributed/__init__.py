"""Figures of `eager.distributed`: ``python -m benchmarks distributed``.

All libraries live in the same processes, started by mpirun, and take turns within one run.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, machine

LIMIT = 900  # seconds for one run of ranks


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def ranks(n: int, *arguments: str) -> dict[str, Any]:
    """Runs `benchmarks.distributed.ranks` on n ranks of this machine; gives rank 0's JSON."""
    if shutil.which("mpirun") is None:
        raise SystemExit("benchmarks distributed: mpirun is missing; install Open MPI")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "MKL_", "OMPI_"))}
    env.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()),
        EAGER_COMM_SECRET=secrets.token_hex(),
        GLOO_PORT=str(free_port()), GRPC_PORT=str(free_port()),
        OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1",
        PYTHONPATH=os.pathsep.join(p for p in (os.getcwd(), env.get("PYTHONPATH")) if p),
    )  # fmt: skip
    command = [
        "mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(n),
        sys.executable, "-m", "benchmarks.distributed.ranks", *arguments,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        # not by standard output, in which mpirun mixes what ranks print
        answer = Path(folder) / "result.json"
        done = subprocess.run([*command, str(answer)], env=env, timeout=LIMIT)
        if done.returncode or not answer.exists():
            raise SystemExit(f"benchmarks distributed: the ranks failed ({done.returncode})")
        result: dict[str, Any] = json.loads(answer.read_text())
    return result


@contextmanager
def forced(transport: str) -> Iterator[None]:
    """Ranks started inside use this transport."""
    os.environ["EAGER_COMM_TRANSPORT"] = transport
    try:
        yield
    finally:
        del os.environ["EAGER_COMM_TRANSPORT"]


def run(command: str, rounds: int) -> Path:
    """Measures everything and writes ``results/distributed.json``."""
    record: dict[str, Any] = {
        "suite": "distributed",
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
    }
    for n in (2, 4):
        print(f"-- all_reduce, {n} ranks", flush=True)
        record[f"all_reduce, {n} ranks"] = ranks(n, "all_reduce", str(rounds))
    print("-- all_reduce over tcp, 2 ranks", flush=True)
    with forced("tcp"):
        record["all_reduce over tcp, 2 ranks"] = ranks(2, "all_reduce", str(rounds))
    print("-- put, 2 ranks", flush=True)
    record["put, 2 ranks"] = ranks(2, "put", str(rounds))
    print("-- training step, 2 ranks", flush=True)
    record["training step, 2 ranks"] = ranks(2, "step", str(rounds))
    path = RESULTS / "distributed.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
