"""Tutorial 11 runs from the repository root and shows what it promises."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_train_one_model(tmp_path):
    done = subprocess.run(
        [sys.executable, "tutorials/11_distributed.py", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1. rank 1 found in its memory: [0.0, 1.0, 2.0," in done.stdout
    for name in ("two ranks", "two ranks, compiled"):
        assert re.search(rf"3\. {name}: loss .*0 bytes staged", done.stdout)
    assert (tmp_path / "distributed.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "distributed.json").read_text())
    assert len(found["loss"]) == 3 and len(found["all_reduce"]["shared"]) == 6
