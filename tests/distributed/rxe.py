"""Two hosts with RDMA devices on a machine that has none: guests in qemu with Soft-RoCE.

The guests run Debian's own kernel, emulated (no KVM), and use the host's files: the root file
system is there read-only, so compilers, libraries and virtual environments are too.  /tmp is empty
but for the paths that are named `visible`.  Each guest has interfaces eth0, eth1, ... at
10.9.<i>.<n>/24 with MTU 9000, and on each a verbs device, rxe0, rxe1, ....  Nothing needs
privileges: what joins the guests is a pair of sockets that only they have.

    python tests/distributed/rxe.py SCRIPT [--guests 2] [--nics 1]

runs a bash script in all guests at once.  It gets NODE (1, 2), NODES, PEER (the address of the
other), and SHARE, a folder that all guests and the host can write.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import lzma
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

__all__ = ["Outcome", "kernel", "run"]

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "gzip": "gzip",
    "strip": "binutils",
    "dpkg-deb": "dpkg",
    "rdma": "iproute2",
}
LIBRARIES = {"libibverbs.so.1": "libibverbs1", "libibverbs/librxe-rdmav*.so": "ibverbs-providers"}
MODULES = [
    "virtio_pci", "virtio_net", "9pnet_virtio", "9p", "virtio_rng", "crc32_pclmul",
    "crc32_generic", "ib_uverbs", "rdma_rxe",
]  # fmt: skip
GRACE = 20.0  # seconds that guests still get when one of them has failed

# The first process: loads the modules, mounts the host's root, makes the devices, runs the script.
# It waits for what must be there, and says so if it does not come.
INIT = r"""#!/bin/busybox sh
/bin/busybox mkdir -p /sbin /usr/bin
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
leave() { echo "guest status: $1"; sync; echo o > /proc/sysrq-trigger; while :; do sleep 1; done; }
while read m; do insmod /mod/$m || { echo "module $m: cannot be loaded"; leave 100; }; done \
  < /mod/order
arg() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
NODE=$(arg node); NODES=$(arg nodes); NICS=$(arg nics)
OPTIONS=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o $OPTIONS,ro,cache=loose hostroot /newroot || leave 101
mkdir /host; mount --bind /newroot /host
mount -t tmpfs -o mode=1777 tmpfs /newroot/tmp
mount -t tmpfs tmpfs /newroot/run
mount -t 9p -o $OPTIONS share /newroot/mnt || leave 102
while read path; do
  [ -d /host$path ] && mkdir -p /newroot$path && mount --bind /host$path /newroot$path || leave 103
done < /newroot/mnt/visible
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm; mount -t devpts devpts /dev/pts
for d in proc sys dev; do mount --bind /$d /newroot/$d; done
mount --bind /dev/shm /newroot/dev/shm
cat > /newroot/run/start <<'END'
ulimit -l unlimited
ready() {  # what it is, and the command that succeeds once it is there
  local name=$1; shift
  for i in $(seq 300); do "$@" 2>/dev/null && return; sleep 0.1; done
  echo "not there after 30 s: $name"; exit 104
}
up() { [ "$(cat /sys/class/net/$1/operstate)" = up ]; }
has_gid() { grep -qi "ffff:0a09:0$2" /sys/class/infiniband/$1/ports/1/gids/*; }
ip link set lo up
for ((n = 0; n < NICS; n++)); do
  ready eth$n test -e /sys/class/net/eth$n
  ip addr add 10.9.$n.$NODE/24 dev eth$n && ip link set eth$n mtu 9000 up || exit 105
  ready "eth$n up" up eth$n
  rdma link add rxe$n type rxe netdev eth$n || exit 106
  ready "the address of rxe$n" has_gid rxe$n $n
done
cd "$SHARE"; source "$SHARE/script"
END
chroot /newroot /usr/bin/env -i HOME=/root PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin \
  NODE=$NODE NODES=$NODES NICS=$NICS PEER=10.9.0.$((3 - NODE)) SHARE=/mnt /bin/bash /run/start
leave $?
"""


def require_tools() -> None:
    """Fails with the line that installs what is missing."""
    if platform.machine() != "x86_64":
        raise RuntimeError("the guests run this host's programs, and they are x86-64 machines")
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/bin"
    missing = [package for name, package in TOOLS.items() if not shutil.which(name, path=path)]
    for pattern, package in LIBRARIES.items():
        if not any(Path("/usr/lib").glob(f"x86_64-linux-gnu/{pattern}")):
            missing.append(package)
    if missing:
        raise RuntimeError(f"the guests need: apt install {' '.join(sorted(set(missing)))}")


def _load_order(tree: Path) -> list[Path]:
    """The modules and what they need, each after what it needs (from their own .modinfo: the
    package has no modules.dep)."""
    index = {path.stem.replace("-", "_"): path for path in tree.rglob("*.ko")}
    order: list[Path] = []

    def add(name: str) -> None:
        path = index.get(name.replace("-", "_"))
        if path is None or path in order:  # None: it is part of the kernel
            return
        content = path.read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        needs = depends[1].decode().split(",") if depends and depends[1] else []
        for soft in re.findall(rb"softdep=pre: ([^\0]*)\0", content):
            needs += soft.decode().split()
        for need in needs:
            add(need)
        order.append(path)

    for name in MODULES:
        add(name)
    return order


def _uncompressed(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage: qemu starts it directly, with nothing to unpack slowly."""
    at = image.find(b"\xfd7zXZ\x00")
    while at >= 0:
        with contextlib.suppress(lzma.LZMAError):
            elf = lzma.LZMADecompressor().decompress(image[at:])
            if elf[:4] == b"\x7fELF":
                return elf
        at = image.find(b"\xfd7zXZ\x00", at + 1)
    raise RuntimeError("the kernel package holds no xz-compressed ELF kernel")


def _apt(*command: str, folder: Path | None = None) -> str:
    """What the command prints.  Lists of packages that are missing or old are fetched first."""
    for attempt in range(2):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
        if attempt == 0:
            subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
    raise RuntimeError(f"{' '.join(command)} fails; try apt-get update\n{done.stderr}")


def _build(out: Path, package: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _apt("apt-get", "download", package, folder=work)
        tree = work / "tree"
        subprocess.run(["dpkg-deb", "-x", next(work.glob("*.deb")), tree], check=True)
        image = next(tree.glob("boot/vmlinuz-*")).read_bytes()
        (out / "vmlinux").write_bytes(_uncompressed(image))
        root = work / "initrd"
        for name in ("bin", "mod", "proc", "sys", "dev", "newroot"):
            (root / name).mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox
        shutil.copy(busybox, root / "bin")
        order = _load_order(tree / "lib" / "modules")
        for module in order:
            target = root / "mod" / module.name
            subprocess.run(["strip", "--strip-debug", "-o", target, module], check=True)
        (root / "mod" / "order").write_text("".join(f"{module.name}\n" for module in order))
        (root / "init").write_text(INIT)
        (root / "init").chmod(0o755)
        pack = "find . | cpio -o -H newc --quiet | gzip -1 > " + str(out / "initrd.gz")
        subprocess.run(["bash", "-o", "pipefail", "-c", pack], cwd=root, check=True)


def kernel(cache: Path | None = None) -> Path:
    """A folder with the kernel and its initrd; made once per version of the kernel package.

    Raises RuntimeError with the command that helps when a tool or the package is missing.
    """
    require_tools()
    shown = _apt("apt-cache", "depends", "linux-image-amd64")
    found = re.search(r"Depends: (linux-image-\S+)", shown)
    if not found:
        raise RuntimeError(f"apt knows no kernel package:\n{shown}")
    if cache is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = Path(home) / "eager-jit-tests"
    recipe = hashlib.sha256((INIT + " ".join(MODULES)).encode()).hexdigest()[:12]
    ready = cache / f"{found[1]}-{recipe}"
    if not ready.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache, prefix="making-"))
        try:
            _build(made, found[1])
            with contextlib.suppress(OSError):  # somebody else was faster
                made.rename(ready)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return ready


@dataclass
class Outcome:
    """What a guest printed, and its script's exit status; None: it did not come to its end."""

    node: int
    status: int | None = None
    lines: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        """The lines."""
        return "\n".join(self.lines)


def _follow(stream: IO[str], outcome: Outcome, verbose: bool) -> None:
    """Reads a guest's console to its end."""
    for line in stream:
        text = line.rstrip()
        if done := re.search(r"guest status: (\d+)$", text):
            outcome.status = int(done[1])
            text = text[: done.start()]
        outcome.lines.append(text)
        if verbose and text:
            print(f"[{outcome.node}] {text}", flush=True)


def run(
    folder: Path,
    script: str,
    share: Path,
    *,
    guests: int = 2,
    nics: int = 1,
    visible: Sequence[Path] = (),
    timeout: float = 240.0,
    verbose: bool = False,
) -> list[Outcome]:
    """Boots guests from `folder` (see kernel()), runs the script in all of them, ends them.

    `share` is a folder of the host; `visible` are folders below /tmp that guests may read.
    """
    (share / "script").write_text(script)
    (share / "visible").write_text("".join(f"{path.resolve()}\n" for path in visible))
    # One wire per interface; a pair of connected sockets has no name that another run could have.
    wires = [socket.socketpair() for _ in range(nics)]
    outcomes = [Outcome(node) for node in range(1, guests + 1)]
    processes: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    try:
        for outcome in outcomes:
            node = outcome.node
            network: list[str] = []
            ends = [wire[node - 1] for wire in wires]
            for n, end in enumerate(ends):
                mac = f"52:54:00:00:{n:02x}:{node:02x}"
                network += ["-netdev", f"socket,id=n{n},fd={end.fileno()}"]
                network += ["-device", f"virtio-net-pci,netdev=n{n},romfile=,mac={mac}"]
            # no_timer_check: on a loaded machine emulated timers come too late for that check.
            arguments = (
                "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr net.ifnames=0 "
                "no_timer_check "
                f"random.trust_cpu=on node={node} nodes={guests} nics={nics}"
            )
            files = {"hostroot": "/,readonly=on,multidevs=remap", "share": str(share.resolve())}
            mounts: list[str] = []
            for tag, path in files.items():
                mounts += ["-fsdev", f"local,id={tag},security_model=none,path={path}"]
                mounts += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
            process = subprocess.Popen(
                [
                    "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max",
                    # With one processor at most, qemu before 8.1 leaves out memory barriers,
                    # and a queue of a virtio device then stalls now and then.
                    "-smp", "1,maxcpus=2",
                    "-m", "1536", "-M", "q35", "-nodefaults", "-no-user-config", "-no-reboot",
                    "-display", "none", "-serial", "stdio", "-device", "virtio-rng-pci",
                    "-kernel", str(folder / "vmlinux"), "-initrd", str(folder / "initrd.gz"),
                    "-append", arguments, *mounts, *network,
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", pass_fds=[end.fileno() for end in ends],
            )  # fmt: skip
            processes.append(process)
            assert process.stdout
            reader = threading.Thread(target=_follow, args=(process.stdout, outcome, verbose))
            reader.start()
            readers.append(reader)
        deadline = time.monotonic() + timeout
        for process in processes:
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                failed = any(o.status for o in outcomes) or any(
                    p.poll() is not None and o.status is None
                    for p, o in zip(processes, outcomes, strict=True)
                )
                if failed:  # the others wait for one that will not answer
                    deadline = min(deadline, time.monotonic() + GRACE)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for reader in readers:
            reader.join()
        for process in processes:
            if process.stdout:
                process.stdout.close()
        for wire in wires:
            for end in wire:
                end.close()
    return outcomes


def main() -> int:
    """The command line: prints what the guests print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("script", type=Path)
    parser.add_argument("--guests", type=int, choices=(1, 2), default=2)
    parser.add_argument("--nics", type=int, default=1)
    parser.add_argument("--share", type=Path, help="the folder that is SHARE in the guests")
    parser.add_argument("--visible", type=Path, action="append", default=[])
    parser.add_argument("--timeout", type=float, default=240)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(
            kernel(), args.script.read_text(), args.share or Path(folder), guests=args.guests,
            nics=args.nics, visible=args.visible, timeout=args.timeout, verbose=True,
        )  # fmt: skip
    for outcome in outcomes:
        status = "did not end" if outcome.status is None else f"exit status {outcome.status}"
        print(f"guest {outcome.node}: {status}")
    return max(1 if outcome.status is None else outcome.status for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
