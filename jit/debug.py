"""What ``EAGER_DEBUG=1..4`` prints: each level adds to those below it.

=====  ====================================
1      graphs as traced, and refusals
2      the graph after every pass
3      schedules
4      generated source
=====  ====================================
"""

from __future__ import annotations

import os
import sys


def level() -> int:
    """The level asked for, from the environment."""
    text = os.environ.get("EAGER_DEBUG", "")
    return int(text) if text.isdigit() else 0


def show(at: int, title: str, what: object) -> None:
    """Prints `what` under `title` on the error stream when the level is at least `at`."""
    if level() >= at:
        print(f"--- {title} ---\n{what}", file=sys.stderr, flush=True)
