"""The package works from the repository's root, where the sources shadow the installed copy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = "import eager; print(eager.__file__); print((eager.ones(2, 3) @ eager.ones(3, 1)).tolist())"


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_import(where: str, tmp_path: Path) -> None:
    folder = ROOT if where == "root" else tmp_path
    out = subprocess.run(
        [sys.executable, "-c", CODE], cwd=folder, capture_output=True, text=True, check=True
    )
    file, product = out.stdout.splitlines()
    assert product == "[[3.0], [3.0]]"
    if where == "root":
        assert Path(file) == ROOT / "eager" / "__init__.py"


def test_changed_definitions_are_noticed(tmp_path: Path) -> None:
    """Sources that the extension was not generated from refuse to load."""
    code = (
        "import eager._registry_hash as h; h.registry_hash = lambda root: 'other';"
        "from eager import _C, _bootstrap; _bootstrap.check_registry(_C)"
    )
    env = {k: v for k, v in os.environ.items() if k != "EAGER_ALLOW_STALE"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env
    )
    assert done.returncode != 0 and "reinstall" in done.stderr
