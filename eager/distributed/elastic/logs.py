"""Where the workers' output goes: the console, files, or both."""

from __future__ import annotations

import contextlib
import os
import selectors
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from eager.errors import ArgumentError, helpful

__all__ = ["Outputs", "Streams", "parse_streams"]

STREAMS = ("stdout", "stderr")
_READ = 1 << 16  # bytes at a time


@dataclass(frozen=True, slots=True)
class Streams:
    """A choice of streams (bit 1: stdout, bit 2: stderr) for each local rank."""

    default: int = 0
    ranks: Mapping[int, int] = field(default_factory=dict)

    def has(self, local_rank: int, stream: int) -> bool:
        """Whether ``stream`` (0: stdout, 1: stderr) of a worker is chosen."""
        return bool(self.ranks.get(local_rank, self.default) & (1 << stream))

    def any(self) -> bool:
        """Whether anything is chosen."""
        return any([self.default, *self.ranks.values()])


def parse_streams(text: str, option: str) -> Streams:
    """Reads ``"3"`` (all ranks, both streams) or ``"0:1,1:2"`` (stdout of 0, stderr of 1)."""
    parts = [p.split(":") for p in text.split(",")]
    if all(p[-1] in ("0", "1", "2", "3") for p in parts):
        if len(parts) == 1 and len(parts[0]) == 1:
            return Streams(int(parts[0][0]))
        if all(len(p) == 2 and p[0].isdecimal() and p[0].isascii() for p in parts):
            return Streams(0, {int(p[0]): int(p[1]) for p in parts})
    raise helpful(
        ArgumentError,
        option,
        "not a choice of streams",
        "0 (none), 1 (stdout), 2 (stderr), 3 (both), or local ranks with one each: 0:3,1:2",
        repr(text),
    )


@dataclass(slots=True)
class _Pipe:
    """One stream of a worker that is shown and written to a file."""

    prefix: bytes
    console: BinaryIO
    file: BinaryIO | None
    rest: bytes = b""

    def write(self, data: bytes) -> None:
        """Takes what the worker wrote; the console gets whole lines, each with the prefix."""
        if self.file:
            self.file.write(data)
            self.file.flush()
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > _READ:  # a line without an end is shown in pieces
            lines, self.rest = [*lines, self.rest], b""
        self._show(lines)

    def close(self) -> None:
        """Shows what is left."""
        if self.rest:
            self._show([self.rest])
        if self.file:
            self.file.close()

    def _show(self, lines: list[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):  # the launcher's console may be gone
            self.console.write(b"".join(self.prefix + line + b"\n" for line in lines))
            self.console.flush()


class Outputs:
    """Opens the streams of workers, and copies those that are teed.

    Args:
        redirects: streams that go to files only.
        tee: streams that go to files and, with ``[<role><local rank>]:`` before each line, to
            the console.
        shown: local ranks whose output may appear on the console; the others' goes to files.
            None: all.
        role: for the prefix.
    """

    def __init__(
        self, redirects: Streams, tee: Streams, shown: frozenset[int] | None, role: str
    ) -> None:
        self._redirects, self._tee, self._shown, self._role = redirects, tee, shown, role
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._open = 0
        self._idle = threading.Condition(self._lock)

    def open(self, local_rank: int, folder: Path) -> tuple[list[int | None], list[int]]:
        """The file descriptors for a worker's stdout and stderr (None: inherited).

        Returns:
            The two descriptors, and those that have to be closed once the worker has started.
        """
        given: list[int | None] = []
        opened: list[int] = []
        for stream, name in enumerate(STREAMS):
            hidden = self._shown is not None and local_rank not in self._shown
            tee = self._tee.has(local_rank, stream)
            if not (tee or hidden or self._redirects.has(local_rank, stream)):
                given.append(None)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}.log"
            if tee and not hidden:
                end = self._pipe(local_rank, stream, path)
            else:
                end = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            given.append(end)
            opened.append(end)
        return given, opened

    def drain(self, timeout: float) -> None:
        """Waits until the workers' ends of all pipes are closed and their text is written."""
        with self._idle:
            self._idle.wait_for(lambda: self._open == 0, timeout)

    def _pipe(self, local_rank: int, stream: int, path: Path) -> int:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        console = (sys.stdout, sys.stderr)[stream].buffer
        prefix = f"[{self._role}{local_rank}]:".encode()
        with self._lock:
            self._open += 1
        self._selector.register(
            reading, selectors.EVENT_READ, _Pipe(prefix, console, path.open("ab"))
        )
        if self._thread is None:
            self._thread = threading.Thread(target=self._copy, name="worker output", daemon=True)
            self._thread.start()
        return writing

    def _copy(self) -> None:
        while True:
            # epoll takes descriptors that are added while it waits
            for key, _ in self._selector.select(1.0):
                data = os.read(key.fd, _READ)
                pipe: _Pipe = key.data
                if data:
                    pipe.write(data)
                    continue
                self._selector.unregister(key.fd)
                os.close(key.fd)
                pipe.close()
                with self._idle:
                    self._open -= 1
                    self._idle.notify_all()
