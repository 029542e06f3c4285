"""A counter of changes to state that compiled functions capture.

Modules call `bump` when their parameters, buffers, submodules, training flag or other attributes
change.  Compiled code compares `epoch` with the one it was traced at, which is one comparison
however large the captured state is.
"""

from __future__ import annotations

epoch: int = 0


def bump() -> None:
    """Says that captured state may have changed."""
    global epoch
    epoch += 1
