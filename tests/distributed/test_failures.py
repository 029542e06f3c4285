"""A rank dies, hangs or leaves: every other rank raises PeerLost with its number, in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eager._C import comm

LIMIT = 120.0  # seconds until a test that hangs fails
SOON = 20.0  # seconds within which a death is seen, on a busy machine
# EAGER_COMM_HEARTBEAT and EAGER_COMM_TIMEOUT, seconds: where the end of a process is what tells,
# both are far longer than the test accepts.
TIMES = {"stop": (2.0, 100.0), "sleep": (100.0, 3.0)}
NEVER = (100.0, 100.0)

SCRIPT = """
import json, os, signal, sys, time
import eager, eager.distributed as dist

end, mode, victim = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group()
rank = dist.get_rank()
small, large = eager.ones(16), eager.ones(1 << 18)

def step():
    if mode == "blocking":
        dist.all_reduce(small)
        dist.all_reduce(large)
    elif mode == "async":
        works = [dist.all_reduce(t, async_op=True) for t in (small, large)]
        for work in works:
            work.wait()
    elif mode == "recv":
        if rank == victim:
            dist.send(small, (rank + 1) % dist.get_world_size())
        else:
            dist.recv(small, victim)
    elif mode == "ddp":
        model(small).sum().backward()

if mode == "ddp":
    model = eager.nn.parallel.DistributedDataParallel(eager.nn.Linear(16, 4))
for _ in range(3 if mode != "recv" else 0):
    step()
open(f"ready{rank}", "w").close()
if rank == victim:  # the others are beyond the steps in which it took part
    while not all(os.path.exists(f"ready{r}") for r in range(dist.get_world_size())):
        time.sleep(0.005)
if rank == victim:
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif end == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif end == "exit":
        sys.exit(3)
    elif end == "raise":
        raise ValueError("of the script")
    elif end == "sleep":
        time.sleep(600)
begun = time.monotonic()
try:
    while True:
        step()
except dist.PeerLost as error:
    after = time.monotonic() - begun
    record = {"rank": error.rank, "in_flight": error.in_flight, "text": str(error), "after": after,
              "notes": getattr(error, "__notes__", [])}
again = time.monotonic()
try:
    step()  # the group is broken: no second time-out
except dist.DistributedError as error:
    record["again"] = time.monotonic() - again
json.dump(record, open(f"survivor{rank}.json", "w"))
"""


def survivors(
    folder: Path, end: str, ranks: int, transport: str, mode: str, victim: int, agent: bool = True
) -> list[dict]:
    """Runs the script and returns what the ranks that were left reported."""
    (folder / "script.py").write_text(SCRIPT)
    silence, patience = TIMES.get(end, NEVER)
    server = comm.StoreServer("127.0.0.1", 0, "secret")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EAGER_COMM")}
    common = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(server.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "EAGER_COMM_SECRET": "secret",
        "EAGER_COMM_TRANSPORT": transport,
        "EAGER_COMM_HEARTBEAT": str(silence),
        "EAGER_COMM_TIMEOUT": str(patience),
        "EAGER_NUM_THREADS": "1",
    }
    if not agent:
        del server  # its port is free now: rank 0 serves there
        common["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    processes = [
        subprocess.Popen(
            [sys.executable, "script.py", end, mode, str(victim)],
            cwd=folder,
            env={**clean, **common, "RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(ranks)
    ]
    try:
        others = [r for r in range(ranks) if r != victim]
        for rank in others:
            out, _ = processes[rank].communicate(timeout=LIMIT)
            assert processes[rank].returncode == 0, out
        return [json.loads((folder / f"survivor{r}.json").read_text()) for r in others]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("end", "ranks", "transport", "mode", "victim"),
    [
        ("kill", 2, "shm", "blocking", 1),
        ("kill", 4, "shm", "async", 2),
        ("kill", 4, "tcp", "blocking", 1),
        ("kill", 2, "tcp", "async", 0),
        ("stop", 2, "shm", "async", 0),
        ("stop", 4, "tcp", "blocking", 3),
        ("exit", 4, "shm", "blocking", 0),
        ("exit", 2, "tcp", "async", 1),
        ("raise", 2, "shm", "async", 1),
        ("raise", 4, "tcp", "blocking", 2),
        ("sleep", 2, "shm", "blocking", 1),
        ("sleep", 4, "shm", "async", 1),
        ("sleep", 4, "tcp", "blocking", 2),
        ("kill", 2, "shm", "recv", 0),
        ("stop", 2, "tcp", "recv", 0),
        ("kill", 2, "shm", "ddp", 1),
    ],
)
def test_every_survivor_names_the_lost_rank(
    tmp_path: Path, end: str, ranks: int, transport: str, mode: str, victim: int
) -> None:
    for report in survivors(tmp_path, end, ranks, transport, mode, victim):
        assert report["rank"] == victim, report
        assert ("recv" if mode == "recv" else "all_reduce") in report["in_flight"], report
        assert (mode == "ddp") == ("bucket 1 of 1: bias to weight" in str(report["notes"])), report
        assert report["after"] < SOON and report["again"] < SOON, report


def test_rank_zero_may_die_with_the_store(tmp_path: Path) -> None:
    for report in survivors(tmp_path, "kill", 2, "shm", "blocking", 0, agent=False):
        assert report["rank"] == 0, report
