"""Two hosts on one machine: network namespaces, and a wire between them that can be bad.

A namespace has loopback and one interface, a TUN device; what leaves it is read here, packet by
packet, and handed to the other namespace later, or never.  So the kernel's TCP sees real delay,
loss and cut cables, and nothing is needed but /dev/net/tun: no qdisc, no firewall, no tools.

Namespaces have no names and live as long as descriptors of them: whatever happens to the test,
nothing stays behind.
"""

import ctypes
import errno
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["ADDRESSES", "Host", "Wire"]

ADDRESSES = ("10.71.0.1", "10.71.0.2")  # of hosts 0 and 1; seen by nobody else

_MTU = 1500
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU = 0x8914, 0x8916, 0x891C, 0x8922
_IFF_UP = 0x1
_HINT = (
    "network namespaces are not permitted here: run the tests as root, in a container with "
    "--cap-add=SYS_ADMIN --cap-add=NET_ADMIN --device=/dev/net/tun --security-opt "
    "seccomp=unconfined"
)

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def _call(name: str, *args: int) -> None:
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        text = f"{name}: {os.strerror(number)}"
        raise OSError(number, f"{text}; {_HINT}" if number in (errno.EPERM, errno.EACCES) else text)


def _in_new_thread(function: Callable[[], T]) -> T:
    """Calls it in a thread of its own: what namespace that is in does not matter afterwards."""
    result: list[T] = []
    error: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as e:
            error.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if error:
        raise error[0]
    return result[0]


def _open_tun() -> int:
    try:
        return os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise OSError(e.errno, f"/dev/net/tun: {e.strerror}; {_HINT}") from e


class Host:
    """A network namespace with one address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.namespace, self.tun = _in_new_thread(self._make)

    def _make(self) -> tuple[int, int]:
        _call("unshare", _CLONE_NEWNET)
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return namespace, self._make_wire_end()
        except OSError:
            os.close(namespace)
            raise

    def _make_wire_end(self) -> int:
        tun = _open_tun()
        try:
            self._configure(tun)
        except OSError:
            os.close(tun)
            raise
        return tun

    def _configure(self, tun: int) -> None:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"wire", _IFF_TUN | _IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:

            def set_address(request: int, address: str) -> None:
                packed = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
                fcntl.ioctl(s, request, struct.pack("16s16s8x", b"wire", packed))

            set_address(_SIOCSIFADDR, self.address)
            set_address(_SIOCSIFNETMASK, "255.255.255.0")
            fcntl.ioctl(s, _SIOCSIFMTU, struct.pack("16si20x", b"wire", _MTU))
            for name in (b"lo", b"wire"):
                fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("16sH22x", name, _IFF_UP))

    def popen(
        self, command: Sequence[str], env: Mapping[str, str], **options: Any
    ) -> subprocess.Popen[str]:
        """Starts a program on this host."""

        def start() -> subprocess.Popen[str]:
            _call("setns", self.namespace, _CLONE_NEWNET)
            return subprocess.Popen(command, env=env, text=True, **options)

        return _in_new_thread(start)

    def close(self) -> None:
        """Lets the namespace go; it ends with the last process in it."""
        os.close(self.tun)
        os.close(self.namespace)


class Wire:
    """Joins two hosts; a context manager.

    Args:
        delay: of each packet, in seconds, one way.
        loss: the share of packets that vanish, 0 to 1; drawn from `seed`.
        rate: bytes per second and direction, or None: what the machine can.
    """

    def __init__(
        self, delay: float = 0.0, loss: float = 0.0, rate: float | None = None, seed: int = 1
    ) -> None:
        self.delay, self.loss, self.rate = delay, loss, rate
        self.carried = self.lost = 0  # packets
        self._random = random.Random(seed)
        self._cut = threading.Event()
        self.hosts = [Host(ADDRESSES[0])]
        try:
            self.hosts.append(Host(ADDRESSES[1]))
        except OSError:
            self.hosts[0].close()
            raise
        self._stop, self._stopper = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *exc: object) -> None:
        os.write(self._stopper, b"x")
        self._thread.join()
        os.close(self._stop)
        os.close(self._stopper)
        for host in self.hosts:
            host.close()

    def cut(self) -> None:
        """From now on every packet vanishes, those on their way too; nobody is told."""
        self._cut.set()

    def mend(self) -> None:
        """Packets are carried again."""
        self._cut.clear()

    def _run(self) -> None:
        tuns = [host.tun for host in self.hosts]
        poll = select.poll()
        for fd in (*tuns, self._stop):
            poll.register(fd, select.POLLIN)
        waiting: list[tuple[float, int, int, bytes]] = []  # when, number, to, packet
        free = [0.0, 0.0]  # when the wire can take the next packet of each direction
        number = 0
        while True:
            pause = 1e3 * (waiting[0][0] - time.monotonic()) if waiting else None
            ready = poll.poll(None if pause is None else max(0.0, pause))
            if any(fd == self._stop for fd, _ in ready):
                return
            now = time.monotonic()
            for fd, _ in ready:
                side = tuns.index(fd)
                for _ in range(64):
                    try:
                        packet = os.read(fd, _MTU + 64)
                    except BlockingIOError:
                        break
                    if self._random.random() < self.loss:
                        self.lost += 1
                        continue
                    start = max(now, free[side])
                    if self.rate:
                        free[side] = start + len(packet) / self.rate
                    number += 1
                    heapq.heappush(waiting, (start + self.delay, number, 1 - side, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(waiting)
                if self._cut.is_set():
                    self.lost += 1
                    continue
                try:
                    os.write(tuns[to], packet)
                    self.carried += 1
                except OSError:  # the device's queue is full, or the host refuses the packet
                    self.lost += 1
