"""What the robustness tests share."""

import faulthandler
import os
import subprocess
import sys
import textwrap

import pytest

import eager


@pytest.fixture(autouse=True)
def no_hang():
    """A test that hangs ends the process and says where it was."""
    faulthandler.dump_traceback_later(120, exit=True)
    threads = eager.get_num_threads()
    yield
    eager.set_num_threads(threads)
    faulthandler.cancel_dump_traceback_later()


def run_alone(code, **environment):
    """The output of a script in its own interpreter; fails if that dies or hangs."""
    text = "import eager\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", text], capture_output=True, text=True,
        timeout=100, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
