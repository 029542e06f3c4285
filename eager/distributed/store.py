"""Key-value stores through which ranks find each other.

Names and semantics are those of `torch.distributed.TCPStore`.  Clients and server prove to each
other that they know a secret before anything else is read.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from collections.abc import Sequence
from datetime import timedelta

from eager._C import comm
from eager.distributed.errors import AuthenticationError, Timeout
from eager.errors import ArgumentError, helpful

__all__ = ["PrefixStore", "Store", "TCPStore", "is_loopback", "job_secret"]

DEFAULT_TIMEOUT = timedelta(seconds=300)


def is_loopback(host: str) -> bool:
    """Whether every address of `host` is of this machine only."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    addresses = {str(entry[4][0]).partition("%")[0] for entry in found}
    return bool(addresses) and all(ipaddress.ip_address(a).is_loopback for a in addresses)


def job_secret(host: str) -> str:
    """The secret of the job: EAGER_COMM_SECRET; empty if EAGER_COMM_INSECURE=1 and `host`, where
    the ranks meet, is loopback.

    Raises:
        AuthenticationError: neither.
    """
    given = os.environ.get("EAGER_COMM_SECRET", "")
    if given:
        return given
    if os.environ.get("EAGER_COMM_INSECURE") == "1":
        if is_loopback(host):
            return ""
        raise helpful(
            AuthenticationError, "init_process_group",
            "jobs without a secret are for the loopback interface only",
            "EAGER_COMM_SECRET, the same on all ranks",
            f"EAGER_COMM_INSECURE=1 and the meeting place {host}",
        )  # fmt: skip
    raise helpful(
        AuthenticationError, "init_process_group", "the job has no secret",
        "EAGER_COMM_SECRET, the same on all ranks, by which they know each other", "none",
        "python -m eager.distributed.run makes one; else "
        f"EAGER_COMM_SECRET={secrets.token_hex(4)}..., or EAGER_COMM_INSECURE=1 on one host",
    )  # fmt: skip


def _seconds(timeout: timedelta | float) -> float:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


class Store:
    """What all stores have.  `_prefix` is put before every key."""

    _prefix = ""

    def __init__(self, native: comm.Store, prefix: str = "") -> None:
        self.native = native
        self._prefix = prefix

    def _key(self, key: str) -> str:
        return self._prefix + key

    def set(self, key: str, value: str | bytes) -> None:
        """Sets a key; who waits for it goes on."""
        self.native.set(self._key(key), _bytes(value))

    def get(self, key: str) -> bytes:
        """The value of a key, waiting for it to be set; raises Timeout."""
        return self.native.get(self._key(key))

    def add(self, key: str, amount: int) -> int:
        """Adds to a decimal number and returns the sum; a key that is not there counts as 0."""
        return self.native.add(self._key(key), amount)

    def compare_set(
        self, key: str, expected_value: str | bytes, desired_value: str | bytes
    ) -> bytes:
        """Sets the key if its value is the expected one, or if it is not there and that is empty.

        Returns the value afterwards."""
        return self.native.compare_set(
            self._key(key), _bytes(expected_value), _bytes(desired_value)
        )

    def wait(self, keys: Sequence[str], timeout: timedelta | float | None = None) -> None:
        """Waits until all keys are there; raises Timeout."""
        limit = self.native.timeout if timeout is None else _seconds(timeout)
        self.native.wait([self._key(k) for k in keys], limit)

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys are there."""
        return self.native.check([self._key(k) for k in keys])

    def delete_key(self, key: str) -> bool:
        """Removes a key; whether it was there."""
        return self.native.remove(self._key(key))

    def num_keys(self) -> int:
        """The number of keys, those of other prefixes included."""
        return self.native.size()

    def set_timeout(self, timeout: timedelta | float) -> None:
        """The time-out of `get` and `wait`."""
        self.native.timeout = _seconds(timeout)

    @property
    def timeout(self) -> timedelta:
        """The time-out of `get` and `wait`."""
        return timedelta(seconds=self.native.timeout)


class TCPStore(Store):
    """A store whose server runs in the process with ``is_master=True``.

    Args:
        host_name, port: of the server; port 0 lets the master choose one (`port` tells).
        world_size: the number of clients, the master included, or None.
        is_master: serve here.
        timeout: of connecting, and of later calls.
        wait_for_workers: with a world_size, wait until all have connected.
        secret: None for `job_secret`.

    Raises:
        Timeout: nobody serves there, or not all workers came.
        AuthenticationError: the server has another secret.
        DistributedError: the address cannot be served.
    """

    def __init__(
        self, host_name: str, port: int, world_size: int | None = None, is_master: bool = False,
        timeout: timedelta | float = DEFAULT_TIMEOUT, wait_for_workers: bool = True,
        secret: str | None = None,
    ) -> None:  # fmt: skip
        if not 0 <= port < 1 << 16 or (port == 0 and not is_master):
            raise helpful(ArgumentError, "TCPStore", "not a port", "1 to 65535, or 0 for a master",
                          str(port))  # fmt: skip
        key = job_secret(host_name) if secret is None else secret
        self._server: comm.StoreServer | None = None
        if is_master:
            # Other hosts come by any interface; strangers are turned away by the secret.
            place = host_name if is_loopback(host_name) else ""
            self._server = comm.StoreServer(place, port, key)
            port = self._server.port
        self.host, self.port = host_name, port
        limit = _seconds(timeout)
        super().__init__(comm.Store(host_name, port, key, limit))
        if world_size is not None and wait_for_workers:
            self._meet(world_size, limit)

    def _meet(self, world_size: int, limit: float) -> None:
        if self.add("store/workers", 1) >= world_size:
            self.set("store/complete", b"")
        try:
            self.wait(["store/complete"], limit)
        except Timeout:
            raise helpful(
                Timeout, "TCPStore", f"not all clients came within {limit:g} s",
                f"{world_size} clients", f"{self.add('store/workers', 0)}",
            ) from None  # fmt: skip

    def close(self) -> None:
        """Stops the server, if it runs here."""
        self._server = None


class PrefixStore(Store):
    """A store whose keys all begin with ``prefix/``, within another store."""

    def __init__(self, prefix: str, store: Store) -> None:
        super().__init__(store.native, f"{store._prefix}{prefix}/")
        self.underlying_store = store
