"""RDMA between two hosts: guests with Soft-RoCE devices run the library, collectives and DDP.

One boot serves all tests.  That bytes went through the verbs devices is read off the devices' own
packet counters: a packet carries 4096 bytes at most, and other traffic is not counted there.
"""

from __future__ import annotations

import re
import secrets
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import rxe
from native_build import ROOT, build, tool
from ranks import environment

pytestmark = pytest.mark.xdist_group("rxe")
HERE = Path(__file__).parent
NICS = 2
PACKET = 4096  # bytes of payload, at most: the largest MTU of the verbs
LARGEST = 16 << 20
SECTIONS = "all_reduce reduce_scatter ddp large static ddp_large"

SCRIPT = """
set -e
counters() {{  # "counters NAME device sent received not_ready", for each device
  local d; for d in /sys/class/infiniband/*; do (
    cd $d/ports/1/hw_counters
    echo "counters $1 ${{d##*/}} $(cat sent_pkts) $(cat rcvd_pkts) $(cat rcvd_rnr_err)" ); done
}}
step() {{ local name=$1; shift; echo "begin $name"; "$@" && echo "end $name"; }}
{exports}
export EAGER_COMM_LOG=1
counters start
step device timeout 100 ./verbs_tests verbs_on_a_device
counters device
step puts timeout 150 ./comm_verify_puts $((NODE - 1)) 10.9.0.1 7781 verbs {largest}
counters puts
export RANK=$((NODE - 1)) WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1
export MASTER_ADDR=10.9.0.1 MASTER_PORT=7782
step suite timeout 300 {python} -u {rank} {sections}
counters suite
export MASTER_PORT=7783
step cut timeout 150 {python} -u {rank} --cut
"""


@dataclass
class Node:
    """What a guest printed, taken apart."""

    number: int
    output: str

    def step(self, name: str) -> str:
        """What a step printed; fails if it did not come to its end."""
        found = re.search(rf"^begin {name}$(.*?)^end {name}$", self.output, re.M | re.S)
        assert found, f"guest {self.number}: {name} failed\n{self.output}"
        return found[1]

    def packets(self, before: str, after: str) -> dict[str, tuple[int, int, int]]:
        """Per device: packets sent, received, and refused for want of a receive, between two
        readings."""

        def reading(name: str) -> dict[str, list[int]]:
            rows = re.findall(rf"^counters {name} (\S+) (\d+) (\d+) (\d+)$", self.output, re.M)
            assert len(rows) == NICS, self.output
            return {device: [int(n) for n in numbers] for device, *numbers in rows}

        first, last = reading(before), reading(after)
        return {
            device: tuple(b - a for a, b in zip(first[device], last[device], strict=True))
            for device in first
        }  # type: ignore[return-value]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> list[Node]:
    """Builds the programs, boots two guests, runs everything in them."""
    kernel = rxe.kernel()
    folder = tmp_path_factory.mktemp("rxe")
    share = folder / "share"
    share.mkdir()
    comm = ROOT / "csrc/comm"
    built = build(comm, folder / "build", "-DEAGER_COMM_TESTS=ON", target="comm_verify_puts")
    (share / "comm_verify_puts").write_bytes((built / "comm_verify_puts").read_bytes())
    (share / "comm_verify_puts").chmod(0o755)
    sources = [comm / "tests/test_verbs.cpp", comm / "tests/fake_verbs.cpp"]
    compiled = subprocess.run(
        [
            tool("c++"), "-std=c++17", "-O1", "-pthread", f"-I{ROOT / 'csrc'}", *map(str, sources),
            str(ROOT / "csrc/testing/test_main.cpp"), str(built / "libeager_comm.a"), "-ldl",
            "-o", str(share / "verbs_tests"),
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr

    extra = {
        "EAGER_COMM_TRANSPORT": "verbs", "EAGER_COMM_SECRET": secrets.token_hex(16),
        "EAGER_COMM_TIMEOUT": "120", "EAGER_COMM_HEARTBEAT": "60", "EAGER_CACHE_DIR": "/tmp/cache",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    env = {k: v for k, v in environment(extra).items() if k.startswith(("EAGER_", "PYTHON", "OMP"))}
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items())
    needed = {ROOT, Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent}
    needed |= {Path(p) for p in [*sys.path, env.get("EAGER_EXTENSION_DIR", "")] if p}
    visible = sorted(p for p in needed if p.is_dir() and p.resolve().is_relative_to("/tmp"))
    script = SCRIPT.format(
        exports=exports, largest=LARGEST, python=shlex.quote(sys.executable), sections=SECTIONS,
        rank=shlex.quote(str(HERE / "rxe_rank.py")),
    )  # fmt: skip
    outcomes = rxe.run(kernel, script, share, nics=NICS, visible=visible, timeout=600)
    report = "\n".join(f"--- guest {o.node}: {o.status}\n{o.output}" for o in outcomes)
    assert all(outcome.status is not None for outcome in outcomes), report
    return [Node(outcome.node, outcome.output) for outcome in outcomes]


def test_device_with_itself(nodes: list[Node]) -> None:
    """The link's own test, both of its ends on one device."""
    for node in nodes:
        printed = node.step("device")
        assert "(on rxe0 port 1 (Ethernet, GID " in printed and "RoCE v2 10.9.0." in printed
        assert "1 tests, 0 failed" in printed


def test_puts_between_hosts(nodes: list[Node]) -> None:
    """Puts of 0 bytes to 16 MiB are right on both hosts, and went through both devices."""
    for node in nodes:
        printed = node.step("puts")
        assert (
            f"eager.comm: verbs uses rxe0 port 1 (Ethernet, GID 1 RoCE v2 10.9.0.{node.number}"
            in printed
        )
        done = re.search(r"rank (\d): verbs .*: (\d+) bytes sent and verified", printed)
        assert done and int(done[1]) == node.number - 1, printed
        payload = int(done[2])
        assert payload > 2 * LARGEST
        packets = node.packets("device", "puts")
        assert sum(sent for sent, _, _ in packets.values()) * PACKET >= payload
        for sent, received, not_ready in packets.values():  # striped: each has its share
            assert sent * PACKET >= payload * 0.4
            assert received * PACKET >= payload * 0.4
            assert not_ready == 0


def test_collectives_and_ddp_between_hosts(nodes: list[Node]) -> None:
    """The same checks of contents as over shared memory and TCP, and larger ones."""
    for node in nodes:
        printed = node.step("suite")
        for section in SECTIONS.split():
            assert re.search(rf"^{section}: [1-9]\d* checks$", printed, re.M), printed
        assert f"SUITE OK rank {node.number - 1}" in printed
        assert f"rank {2 - node.number}: verbs (host {2 - node.number})" in printed
        put = re.search(r"put_bytes (\d+)", printed)
        assert put and int(put[1]) > 4 * LARGEST
        packets = node.packets("puts", "suite")
        assert sum(sent for sent, _, _ in packets.values()) * PACKET >= int(put[1])
        assert all(not_ready == 0 for _, _, not_ready in packets.values())


def test_broken_device_is_a_lost_peer(nodes: list[Node]) -> None:
    """One of two devices goes: both ranks hear of it while they wait, and say what broke."""
    printed = [node.step("cut") for node in nodes]
    for node, text in zip(nodes, printed, strict=True):
        lost = re.search(r"^LOST after (\S+) s: all_reduce: rank (\d) is lost: ", text, re.M)
        assert lost and int(lost[2]) == 2 - node.number, text
        assert float(lost[1]) < 60  # the time-out of operations is twice as long
        assert "in flight: all_reduce" in text
    assert any("rxe1 port 1" in text and "the connection broke" in text for text in printed), (
        printed
    )
