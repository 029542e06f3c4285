"""Starts the ranks of a job as processes of this machine, for tests.

    with Ranks(2, "suite.py", "all_reduce", env={"EAGER_COMM_TRANSPORT": "tcp"}) as job:
        outputs = job.finish()

The store runs in the test's process at a port that the system chose, so jobs never collide.
Whatever happens, no process is left.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from eager._C import comm

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TIMEOUT = 120.0  # of a whole job, on a loaded machine


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables every rank gets: this process's, without those of a launcher around it."""
    prefixes = ("OMPI_", "PMI", "SLURM_", "PET_", "TORCHELASTIC_", "EAGER_COMM_")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {k: v for k, v in os.environ.items() if not k.startswith(prefixes) and k not in names}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    env["EAGER_COMM_SECRET"] = secrets.token_hex(16)
    env["EAGER_COMM_TIMEOUT"] = "60"
    env["EAGER_COMM_HEARTBEAT"] = "30"
    # Several ranks on few cores: one thread each.
    env["EAGER_NUM_THREADS"] = env["OMP_NUM_THREADS"] = "1"
    return {**env, **(extra or {})}


class Ranks:
    """`size` processes that run a script of this folder (or of an absolute path)."""

    def __init__(
        self, size: int, script: str, *args: str, env: Mapping[str, str] | None = None,
        launcher: str = "variables", timeout: float = TIMEOUT,
    ) -> None:  # fmt: skip
        self.size = size
        self.deadline = time.monotonic() + timeout
        self.processes: list[subprocess.Popen[bytes]] = []
        self.outputs: list[Path] = []
        self._folder = tempfile.TemporaryDirectory()
        shared = environment(env)
        command = [sys.executable, "-u", str(HERE / script), *args]
        self.server: comm.StoreServer | None = None
        if launcher == "mpirun":
            mpirun = shutil.which("mpirun")
            assert mpirun, "mpirun is not installed: apt install openmpi-bin"
            options = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
            self._start([mpirun, *options, "-n", str(size), *command], shared)
            return
        self.server = comm.StoreServer("127.0.0.1", 0, shared["EAGER_COMM_SECRET"])
        for rank in range(size):
            mine = {
                "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.server.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            }  # fmt: skip
            self._start(command, {**shared, **mine})

    def _start(self, command: list[str], env: Mapping[str, str]) -> None:
        output = Path(self._folder.name) / str(len(self.processes))
        with output.open("wb") as out:
            process = subprocess.Popen(
                command, env=dict(env), stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        self.outputs.append(output)

    def output(self, index: int) -> str:
        """What a process has printed so far."""
        return self.outputs[index].read_text(errors="replace")

    def wait_for(self, index: int, text: str) -> None:
        """Waits until a process has printed `text`."""
        while text not in self.output(index):
            assert self.processes[index].poll() is None, self.report()
            assert time.monotonic() < self.deadline, self.report()
            time.sleep(0.01)

    def wait(self) -> list[int]:
        """The exit codes; fails if the time is over."""
        codes = []
        for process in self.processes:
            left = max(0.0, self.deadline - time.monotonic())
            try:
                codes.append(process.wait(left))
            except subprocess.TimeoutExpired:
                raise AssertionError("the job hangs\n" + self.report()) from None
        return codes

    def finish(self) -> list[str]:
        """The outputs, after all have ended well.  One that fails ends the wait for the others."""
        while None in (codes := [p.poll() for p in self.processes]) and not any(codes):
            assert time.monotonic() < self.deadline, "the job hangs\n" + self.report()
            time.sleep(0.01)
        assert not any(codes), self.report()
        return [self.output(i) for i in range(len(self.processes))]

    def report(self) -> str:
        """Everything that was printed."""
        parts = [
            f"--- process {i} (exit code {p.poll()})\n{self.output(i)}"
            for i, p in enumerate(self.processes)
        ]
        return "\n".join(parts)

    def kill(self) -> None:
        """Ends all processes and those they started."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.server = None
        self._folder.cleanup()


def run(size: int, script: str, *args: str, **options: object) -> list[str]:
    """Runs a job to its end and returns the outputs; raises AssertionError with them if a rank
    fails or the job hangs."""
    with Ranks(size, script, *args, **options) as job:  # type: ignore[arg-type]
        return job.finish()
