"""The hash that ties an extension to the op definitions it was generated from.

It must not import anything of the package: the generator runs before the extension exists.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

# Everything that determines the generated kernels and the op table, relative to the directory
# that holds the packages.  The generator's own source is left out: it is not installed.
SOURCES = (
    "eager/op.py",
    "eager/scalar.py",
    "eager/scalar_math.py",
    "eager/ops/*.py",
    "jit/codegen/c.py",
    "jit/codegen/printer.py",
)


def registry_hash(root: Path) -> str:
    """The sha256, in hexadecimal, over the definition sources below ``root``."""
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(root.glob(pattern)):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(data)}\n".encode())
            digest.update(data)
    return digest.hexdigest()
