"""A number that stands for the state that compiled functions capture.

Modules and optimizers report here when their parameters, buffers, submodules, training flag or
other attributes change.  Compiled code compares `epoch` with the one it was traced at, which is one
comparison however large the captured state is.

An attribute that goes from one number, string or truth value to another and back brings the old
epoch back (``model.eval()`` and then ``model.train()``), and with it the code compiled for it.
"""

from __future__ import annotations

# Above bit 64 a count of changes that cannot be undone; below, the exclusive or of a hash for every
# undoable change, in which a change and its opposite cancel.
epoch: int = 0
_BITS = 64

SCALARS = (bool, int, float, str)


def bump() -> None:
    """Says that captured state has changed for good: no older epoch comes back."""
    global epoch
    epoch += 1 << _BITS


def change(owner: int, name: str, old: object, new: object) -> None:
    """Says that attribute `name` of the object with this id went from `old` to `new`.

    Both are of the types in `SCALARS`.  The object's creation must have called `bump`, because ids
    are used again.
    """
    global epoch
    epoch ^= _hash(owner, name, old) ^ _hash(owner, name, new)


def _hash(owner: int, name: str, value: object) -> int:
    # repr tells 1 from 1.0 and True, and 0.0 from -0.0
    return hash((owner, name, repr(value))) & ((1 << _BITS) - 1)


def may_return(past: int) -> bool:
    """Whether `past`, an earlier epoch, can become the present one again."""
    return past >> _BITS == epoch >> _BITS
