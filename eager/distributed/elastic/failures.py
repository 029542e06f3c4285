"""How a worker died, told from the worker to its launcher and from there to the user."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from eager.distributed.errors import DistributedError

__all__ = ["ERROR_FILE", "Failure", "WorkersFailed", "record", "root_cause"]

P = ParamSpec("P")
R = TypeVar("R")

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""The variable that names the file for a worker's last exception."""

_LARGEST = 1 << 20  # bytes of an error file that are read


@dataclass(frozen=True, slots=True)
class Failure:
    """One worker that ended badly.

    Attributes:
        rank: of the worker, in the job.
        local_rank: of the worker, on its host.
        host: where it ran.
        pid: its process.
        exit_code: what it returned; the negative number of the signal that killed it.
        time: when it ended, seconds since the epoch on its host.
        error: the name of the exception's class; empty if the worker told none.
        traceback: the exception's text; empty likewise.
    """

    rank: int
    local_rank: int
    host: str
    pid: int
    exit_code: int
    time: float
    error: str = ""
    traceback: str = ""

    def to_json(self) -> dict[str, Any]:
        """A dict that survives JSON."""
        return asdict(self)

    def ending(self) -> str:
        """The exit code in words."""
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        try:
            return f"killed by {signal.Signals(-self.exit_code).name}"
        except ValueError:
            return f"killed by signal {-self.exit_code}"

    def __str__(self) -> str:
        name = f"rank {self.rank} (local rank {self.local_rank}, pid {self.pid} on {self.host})"
        return f"{name}: {self.ending()}" + (f", {self.error}" if self.error else "")


def root_cause(failures: Iterable[Failure]) -> Failure:
    """The failure that came first; those that only say that another rank is gone come last."""
    return min(failures, key=lambda f: (f.error == "PeerLost", f.time))


class WorkersFailed(DistributedError):
    """Workers failed and no restart is left.

    Attributes:
        failures: those of the last round, the root cause first.
    """

    def __init__(self, name: str, failures: list[Failure], problem: str = "") -> None:
        first = [root_cause(failures)] if failures else []
        self.failures = first + sorted(
            (f for f in failures if f not in first), key=lambda f: (f.time, f.rank)
        )
        super().__init__(self._table(name, problem))

    def _table(self, name: str, problem: str) -> str:
        rule = "=" * 72
        lines = [rule, f"{name} FAILED" + (f": {problem}" if problem else "")]
        for i, failure in enumerate(self.failures):
            if i < 2:
                lines += ["-" * 72, "other failures:" if i else "first failure:"]
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(failure.time))
            lines.append(f"  {stamp}  {failure}")
            if i == 0:
                lines += self._why(failure)
        return "\n".join([*lines, rule])

    @staticmethod
    def _why(failure: Failure) -> list[str]:
        if failure.traceback:
            return [f"    {line}" for line in failure.traceback.rstrip().splitlines()]
        if failure.exit_code < 0:
            return []
        return [
            "    no traceback: decorate the script's main function with "
            "@eager.distributed.elastic.record"
        ]


def record(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates the main function of a script, so that the launcher can show why it failed.

    An exception that leaves the function is written into the file that the launcher named, and
    goes on.  Without a launcher nothing happens.  Leaving with `SystemExit` and code 0 or None is
    no failure.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except SystemExit as error:
            if error.code not in (None, 0):
                _write(error)
            raise
        except BaseException as error:
            _write(error)
            raise

    return wrapper


def _write(error: BaseException) -> None:
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    # the layout of torch.distributed.elastic's files, so that either side may be PyTorch's
    text = {
        "message": {
            "message": f"{type(error).__name__}: {error}",
            "errorCode": 1,
            "extraInfo": {
                "py_callstack": "".join(traceback.format_exception(error)),
                "timestamp": str(int(time.time())),
            },
        }
    }
    try:
        Path(path).write_text(json.dumps(text))
    except OSError as problem:  # the exception itself matters more
        print(f"record: cannot write {path}: {problem}", file=sys.stderr)


def read_error_file(path: Path) -> tuple[str, str]:
    """Name of the exception's class, and traceback; both empty if there is no readable file."""
    try:
        with path.open("rb") as file:
            message = json.loads(file.read(_LARGEST))["message"]
        if isinstance(message, str):
            return "", message
        name = str(message["message"]).partition(":")[0]
        return name, str(message["extraInfo"]["py_callstack"])
    except (OSError, ValueError, TypeError, KeyError):
        return "", ""
