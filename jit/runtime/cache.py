"""The on-disk cache of compiled bodies.

One file per body, named by a hash of everything that determines the code.  Files are written
whole under another name and then renamed, so concurrent processes never see half of one; what
does not read back intact is treated as absent and written again.  ``$EAGER_CACHE_DIR`` says where
(default ``~/.cache/eager-jit``); set to an empty string, nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

_MAGIC = b"eager-jit code 1\n"


def directory() -> Path | None:
    """Where compiled code is kept; None: nowhere."""
    chosen = os.environ.get("EAGER_CACHE_DIR")
    if chosen is not None:
        return Path(chosen) if chosen else None
    base = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # no home directory
        return (Path(base) if base else Path.home() / ".cache") / "eager-jit"
    return None


def digest(*parts: str) -> str:
    """A name for what is determined by `parts`."""
    h = hashlib.sha256()
    for part in parts:
        data = part.encode()
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    return h.hexdigest()


def load(key: str) -> bytes | None:
    """What `store` kept under `key`; None if there is nothing, or it is damaged."""
    where = directory()
    if where is None:
        return None
    try:
        data = (where / f"{key}.o").read_bytes()
    except OSError:
        return None
    check, payload = data[len(_MAGIC) :][:32], data[len(_MAGIC) + 32 :]
    intact = data.startswith(_MAGIC) and hashlib.sha256(payload).digest() == check
    return payload if intact else None


def store(key: str, payload: bytes) -> None:
    """Keeps `payload` under `key`.  A cache that cannot be written is not an error."""
    where = directory()
    if where is None:
        return
    data = _MAGIC + hashlib.sha256(payload).digest() + payload
    temporary = None
    try:
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=where, prefix=f"{key[:16]}.", delete=False) as f:
            temporary = f.name
            f.write(data)
        os.replace(temporary, where / f"{key}.o")
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
