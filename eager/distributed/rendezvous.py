"""How ranks meet: a store that all of them reach, and who is who."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from eager.distributed.env import read_env
from eager.distributed.errors import AuthenticationError, Timeout
from eager.distributed.store import PrefixStore, Store, TCPStore, job_secret
from eager.errors import ArgumentError, helpful

__all__ = ["Meeting", "meet"]

_NAME = "init_process_group"


@dataclass
class Meeting:
    """A job's store, and this process's place in it.

    Attributes:
        rank, size: of this process, and of the job.
        store: under the job's prefix.
        prefix: that of all keys of this incarnation of the job, in the underlying store.
        secret: what peers prove to each other that they know; empty: nothing.
        host: where the store is.
    """

    rank: int
    size: int
    store: PrefixStore
    prefix: str
    secret: str
    host: str
    _served: TCPStore | None = None
    _file: Path | None = None

    def close(self) -> None:
        """Stops the store's server if it runs here."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        if self._served is not None:
            self._served.close()


def meet(
    init_method: str | None, rank: int, size: int, store: Store | None, timeout: float
) -> Meeting:
    """Finds the job's store; `timeout` is in seconds.

    Raises:
        ArgumentError: rank, size or init_method make no sense.
        Timeout: nobody serves the store.
    """
    if store is not None:
        if init_method is not None:
            raise helpful(ArgumentError, _NAME, "two places to meet", "store or init_method",
                          f"both, init_method={init_method!r}")  # fmt: skip
        _check(rank, size)
        host = getattr(store, "host", "")
        given = os.environ.get("EAGER_COMM_SECRET", "")
        secret = given if given or not host else job_secret(host)
        return _meeting(rank, size, store, "given", secret, host or "127.0.0.1")
    method = init_method or "env://"
    parts = urlsplit(method)
    if parts.scheme == "env":
        return _from_environment(rank, size, timeout)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    rank, size = int(query.get("rank", rank)), int(query.get("world_size", size))
    if rank < 0 or size < 0:
        env = read_env()
        rank, size = (rank if rank >= 0 else env.rank), (size if size >= 0 else env.world_size)
    _check(rank, size)
    if parts.scheme == "tcp" and parts.hostname and parts.port:
        return _serve(parts.hostname, parts.port, rank, size, "tcp", timeout, rank == 0)
    if parts.scheme == "file" and parts.path:
        return _by_file(Path(parts.netloc + parts.path), rank, size, timeout)
    raise helpful(ArgumentError, _NAME, "not a place to meet",
                  "env://, tcp://host:port or file:///path", repr(method))  # fmt: skip


def _check(rank: int, size: int) -> None:
    if not 0 <= rank < size:
        raise helpful(ArgumentError, _NAME, "rank and world_size do not fit",
                      "0 <= rank < world_size", f"rank={rank}, world_size={size}")  # fmt: skip


def _meeting(
    rank: int, size: int, store: Store, prefix: str, secret: str, host: str,
    served: TCPStore | None = None, file: Path | None = None,
) -> Meeting:  # fmt: skip
    # A job that meets a second time at the same store must not find the first one's keys: every
    # rank counts its own meetings, and the counts are equal if all ranks come equally often.
    turn = store.add(f"{prefix}/meetings/{rank}", 1)
    whole = f"{prefix}/{turn}"
    return Meeting(rank, size, PrefixStore(whole, store), store._key(whole), secret, host,
                   served, file)  # fmt: skip


def _serve(
    host: str, port: int, rank: int, size: int, prefix: str, timeout: float, master: bool
) -> Meeting:
    secret = job_secret(host)
    store = TCPStore(host, port, None, master, timedelta(seconds=timeout), secret=secret)
    return _meeting(rank, size, store, prefix, secret, host, store if master else None)


def _from_environment(rank: int, size: int, timeout: float) -> Meeting:
    env = read_env()
    rank = env.rank if rank < 0 else rank
    size = env.world_size if size < 0 else size
    _check(rank, size)
    master = rank == 0 and not env.use_agent_store
    return _serve(env.master_addr, env.master_port, rank, size, env.prefix, timeout, master)


def _by_file(path: Path, rank: int, size: int, timeout: float) -> Meeting:
    """Rank 0 serves at a free port and writes where into `path`, which the others read."""
    host = os.environ.get("EAGER_COMM_ADDRESS") or "127.0.0.1"
    if rank == 0:
        secret = job_secret(host)
        store = TCPStore(host, 0, None, True, timedelta(seconds=timeout), secret=secret)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as f:
            f.write(f"{host} {store.port}\n")
        os.replace(f.name, path)
        return _meeting(rank, size, store, "file", secret, host, store, path)
    job_secret(host)  # without any it is no use to wait
    deadline = time.monotonic() + timeout
    while True:
        # The file may be that of an earlier job: tried again until its server is the right one.
        try:
            host, port = path.read_text().split()
            store = TCPStore(host, int(port), timeout=timedelta(seconds=1))
            break
        except AuthenticationError:
            if time.monotonic() > deadline:
                raise
        except (FileNotFoundError, ValueError, Timeout, ConnectionError) as error:
            if time.monotonic() > deadline:
                raise helpful(Timeout, _NAME, f"rank 0 did not come within {timeout:g} s",
                              f"its address in {path}", str(error).partition("\n")[0],
                              ) from None  # fmt: skip
        time.sleep(0.02)
    store.set_timeout(timeout)
    return _meeting(rank, size, store, "file", job_secret(host), host)
