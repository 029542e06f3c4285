"""What has to happen before the rest of the package can be imported: finding the extension,
checking that it fits the op definitions, and telling it where BLAS is."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import pkgutil
from collections.abc import MutableSequence
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent


def find_extension(path: MutableSequence[str]) -> None:
    """Extends the package's `path` so that the extension is found also if these sources are not
    the installed ones: in the directory EAGER_EXTENSION_DIR, or in an installed copy.

    Raises:
        ImportError: there is none.
    """
    directory = os.environ.get("EAGER_EXTENSION_DIR")
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    if directory:
        path.insert(0, directory)
    elif not any((_HERE / f"_C{suffix}").exists() for suffix in suffixes):
        path.extend(p for p in pkgutil.extend_path(list(path), "eager") if p not in path)
    if importlib.util.find_spec("eager._C") is None:
        raise ImportError(
            "the extension eager._C is not installed for this Python; install with: pip install ."
        )


def check_registry(extension: ModuleType) -> None:
    """Raises ImportError if the op definitions are not those the extension was generated from.

    EAGER_ALLOW_STALE=1 leaves the check out, for working on definitions: ops that the extension
    lacks then raise when they are called."""
    if os.environ.get("EAGER_ALLOW_STALE") == "1":
        return
    from eager._registry_hash import registry_hash

    if registry_hash(_HERE.parent) != extension.registry_hash():
        raise ImportError(
            f"the op definitions in {_HERE} have changed since the extension {extension.__file__} "
            "was built; reinstall with: pip install ."
        )


def find_blas(extension: ModuleType) -> None:
    """Tells the core where the OpenBLAS wheel keeps its library, without importing the wheel."""
    spec = importlib.util.find_spec("scipy_openblas32")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(place, "lib").glob("libscipy_openblas*")):
            if library.suffix in (".so", ".dylib", ".dll"):
                extension.set_blas_path(str(library))
                return
