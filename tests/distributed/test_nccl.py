"""The backend "nccl" on a stand-in for CuPy and NCCL: one rank, arrays of NumPy.

What it checks is what the backend asks of NCCL, with which arguments.  On a GPU the conformance
suite runs (suite.py --backend nccl)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ranks import HERE, environment

STAND_IN = '''
import ctypes, types, sys
import numpy as np

class Array(np.ndarray):
    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)
    def get(self):
        return np.array(self)

def asarray(x):
    return np.array(x).view(Array)  # a copy, as on a device

class Communicator:
    """One rank: results are the operands.  Checks sizes and kinds."""
    def __init__(self, size, unique, rank):
        assert (size, rank, len(unique)) == (1, 0, 128)
        self.sent = []
    def _move(self, a, b, count, kind):
        ctypes.memmove(b, a, count * SIZES[kind])
    def allReduce(self, a, b, count, kind, op, stream):
        assert op in range(4)
        self._move(a, b, count, kind)
    def reduce(self, a, b, count, kind, op, root, stream):
        assert root == 0
        self._move(a, b, count, kind)
    def reduceScatter(self, a, b, count, kind, op, stream):
        self._move(a, b, count, kind)
    def allGather(self, a, b, count, kind, stream):
        self._move(a, b, count, kind)
    def bcast(self, a, count, kind, root, stream):
        assert root == 0
    def send(self, a, count, kind, peer, stream):
        assert cuda.nccl.depth == 1
        self.sent.append((a, count))
    def recv(self, b, count, kind, peer, stream):
        a, n = self.sent.pop(0)
        assert n == count
        self._move(a, b, count, kind)
    def destroy(self):
        pass

cuda = types.ModuleType("cupy.cuda")
nccl = types.ModuleType("cupy.cuda.nccl")
nccl.depth = 0
def start(): nccl.depth += 1
def end(): nccl.depth -= 1
nccl.groupStart, nccl.groupEnd = start, end
nccl.available, nccl.NcclCommunicator = True, Communicator
nccl.get_unique_id = lambda: tuple(range(-64, 64))
KINDS = dict(INT8=0, UINT8=1, INT32=2, INT64=4, FLOAT16=6, FLOAT32=7, FLOAT64=8)
SIZES = {0: 1, 1: 1, 2: 4, 4: 8, 6: 2, 7: 4, 8: 8}
for name, number in KINDS.items():
    setattr(nccl, "NCCL_" + name, number)
nccl.NCCL_SUM, nccl.NCCL_PROD, nccl.NCCL_MAX, nccl.NCCL_MIN = range(4)
cuda.nccl = nccl

class Event:
    done = True
    def record(self): pass
    def synchronize(self): pass

class Device:
    def __init__(self, number): pass
    def use(self): pass

cuda.Event, cuda.Device = Event, Device
cuda.runtime = types.SimpleNamespace(getDeviceCount=lambda: 1)
cuda.get_current_stream = lambda: types.SimpleNamespace(ptr=0, synchronize=lambda: None)
ascontiguousarray = lambda x: np.ascontiguousarray(x).view(Array)
empty = lambda n, dtype: np.empty(n, dtype).view(Array)
zeros = lambda n, dtype: np.zeros(n, dtype).view(Array)
sys.modules["cupy.cuda"], sys.modules["cupy.cuda.nccl"] = cuda, nccl
'''


def test_suite_of_one_rank(tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text(STAND_IN)
    env = environment({"EAGER_COMM_INSECURE": "1", "RANK": "0", "WORLD_SIZE": "1"})
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    method = f"file://{tmp_path}/meet"
    done = subprocess.run(
        [sys.executable, str(HERE / "suite.py"), "--backend", "nccl", "--init-method", method],
        env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "SUITE OK rank 0" in done.stdout, done.stdout + done.stderr


def test_without_cupy(tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise ImportError('no CuPy here')\n")
    env = environment({"RANK": "0", "WORLD_SIZE": "1"})
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, str(HERE / "suite.py"), "--backend", "nccl",
         "--init-method", f"file://{tmp_path}/meet"],
        env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs CuPy, NCCL and a GPU" in done.stderr and "no CuPy here" in done.stderr
