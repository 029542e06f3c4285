"""Where in the user's code we are: for messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import eager

_PACKAGES = tuple(f"{Path(m).parent}{os.sep}" for m in (eager.__file__ or "", __file__))


def frames() -> Iterator[FrameType]:
    """The caller's frames from the inside, down to the first outside of these packages."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        if not frame.f_code.co_filename.startswith(_PACKAGES):
            return
        frame = frame.f_back


def place(frame: FrameType) -> str:
    """``file:line`` of a frame; "" if it is one of these packages."""
    name = frame.f_code.co_filename
    return "" if name.startswith(_PACKAGES) else f"{name}:{frame.f_lineno}"


def user_location() -> str:
    """``file:line`` of the innermost frame outside these packages; "" if there is none."""
    *_, last = frames()
    return place(last)


def frames_to_user() -> int:
    """How many calls the user's code is away from the caller's frame."""
    return len(list(frames())) - 2
