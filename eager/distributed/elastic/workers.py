"""The worker processes of one node: started, watched and stopped together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eager.distributed.elastic.failures import ERROR_FILE, Failure, read_error_file
from eager.distributed.elastic.logs import Outputs

__all__ = ["Workers"]

_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Worker:
    rank: int
    local_rank: int
    process: subprocess.Popen[bytes]
    error_file: Path
    exit_code: int | None = None
    ended: float = 0.0  # seconds since the epoch
    stopped: bool = False  # by the launcher: no failure of its own


def _die_with(parent: int) -> Callable[[], None]:
    """What a child calls before exec, so that it is killed when the launcher dies."""
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the request
            os._exit(1)

    return prepare


class Workers:
    """The processes of one round on this node.

    Processes lead sessions of their own: what they start in turn is stopped with them.  A process
    that ended stays a zombie until `close`, so that its number is not given to another one while
    its group is still signalled.

    Args:
        command: what each worker runs.
        environments: the variables of each worker, by local rank.
        outputs: where their output goes.
        folder: for log and error files; one sub-folder per local rank.
        host: this node's name, for reports.
    """

    def __init__(
        self,
        command: list[str],
        environments: list[Mapping[str, str]],
        outputs: Outputs,
        folder: Path,
        host: str,
    ) -> None:
        self._host = host
        self._workers: list[_Worker] = []
        prepare = _die_with(os.getpid())
        try:
            for local_rank, variables in enumerate(environments):
                place = folder / str(local_rank)
                place.mkdir(parents=True, exist_ok=True)
                error_file = place / "error.json"
                (out, err), opened = outputs.open(local_rank, place)
                try:
                    process = subprocess.Popen(
                        command,
                        env={**variables, ERROR_FILE: str(error_file)},
                        stdout=out,
                        stderr=err,
                        start_new_session=True,
                        preexec_fn=prepare,
                    )
                finally:
                    for descriptor in opened:
                        os.close(descriptor)
                rank = int(variables["RANK"])
                self._workers.append(_Worker(rank, local_rank, process, error_file))
        except BaseException:
            self.kill()
            self.close()
            raise

    def poll(self) -> None:
        """Notes which workers have ended."""
        for worker in self._workers:
            if worker.exit_code is None:
                flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
                status = os.waitid(os.P_PID, worker.process.pid, flags)
                if status is not None:
                    exited = status.si_code == os.CLD_EXITED
                    worker.exit_code = status.si_status if exited else -status.si_status
                    worker.ended = time.time()

    def running(self) -> bool:
        """Whether a worker was running at the last `poll`."""
        return any(w.exit_code is None for w in self._workers)

    def failures(self) -> list[Failure]:
        """The workers that ended badly by themselves."""
        return [
            Failure(
                w.rank,
                w.local_rank,
                self._host,
                w.process.pid,
                w.exit_code,
                w.ended,
                *read_error_file(w.error_file),
            )
            for w in self._workers
            if w.exit_code and not w.stopped
        ]

    def signal(self, number: int) -> None:
        """Sends a signal to the running workers and to what they started."""
        for worker in self._workers:
            if worker.exit_code is None:
                worker.stopped = True
                self._send(worker, number)
                self._send(worker, signal.SIGCONT)  # a stopped process handles nothing

    def kill(self) -> None:
        """Kills the workers and whatever is left of what they started."""
        for worker in self._workers:
            worker.stopped |= worker.exit_code is None
            self._send(worker, signal.SIGKILL)

    def close(self) -> None:
        """Waits for the processes, which have ended or were killed."""
        for worker in self._workers:
            worker.process.wait()

    @staticmethod
    def _send(worker: _Worker, number: int) -> None:
        # until `close` the number is this worker's, dead or alive
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, number)
