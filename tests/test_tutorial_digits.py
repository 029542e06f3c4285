"""The tutorial runs from the repository root, meets its own bar, and says so when it does not."""

import re
import subprocess
import sys
from pathlib import Path

import eager

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "tutorials/digits_lstm.py", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_training_eagerly_and_compiled(tmp_path):
    done = run("--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^launches_per_call +1$", done.stdout, re.MULTILINE)
    difference = re.search(r"largest loss difference +(\S+)", done.stdout)
    assert float(difference[1]) < 0.1
    early = re.search(r"\((\S+) in the first", done.stdout)
    assert float(early[1]) < 1e-4
    for name in ("eager", "compiled"):
        reached = re.search(rf"{name} accuracy +(\S+)%", done.stdout)
        assert float(reached[1]) >= 97
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    weights = eager.load_file(tmp_path / "digits.safetensors")
    assert weights["lstm.weight_ih_l0"].shape == (192, 8)


def test_too_little_training_fails(tmp_path):
    done = run("--epochs", 1, "--no-compile", "--out", tmp_path)
    assert done.returncode == 1
    assert "below 97%" in done.stderr
