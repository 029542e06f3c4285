"""Prints op_table.cpp and the kernel loops from the op definitions.  Run by CMake:

    generate.py --out DIR --shards N

writes ``op_table.cpp`` and, per instruction set and shard, ``loops_<isa>_<shard>.cpp``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
ISAS = ("baseline", "avx2", "avx512")


def load_definitions() -> None:
    """Imports the op definitions without the packages' __init__: these need the extension, which
    does not exist yet."""
    for package in ("eager", "jit", "jit.codegen"):
        module = ModuleType(package)
        module.__path__ = [str(ROOT.joinpath(*package.split(".")))]
        sys.modules[package] = module
    sys.path.insert(0, str(Path(__file__).parent))
    importlib.import_module("eager.ops")


def write_if_changed(path: Path, text: str) -> None:
    """Leaves an equal file alone, so that it is not compiled again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def shard_text(isa: str, functions: list[str], prelude: str) -> str:
    """One translation unit of loops."""
    body = "\n\n".join(functions)
    text = f"""// Printed from the op definitions; do not edit.
#define EAGER_ISA isa_{isa}
#include "gen/loops.h"

namespace eager::core::isa_{isa} {{

{prelude}
{body}

}}  // namespace eager::core::isa_{isa}
"""
    if isa != "baseline":
        text = f"#if defined(__x86_64__)\n{text}#endif\n"
    return text


def main() -> None:
    """Reads the arguments and writes the files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, required=True)
    options = parser.parse_args()
    load_definitions()

    from table import print_table  # type: ignore[import-not-found]

    from eager import op
    from eager._registry_hash import registry_hash
    from jit.codegen.c import PRELUDE

    options.out.mkdir(parents=True, exist_ok=True)
    source, table = print_table(list(op.registry.values()), registry_hash(ROOT))
    write_if_changed(options.out / "op_table.cpp", table)

    # Longest first onto the shortest shard: translation units of about equal length.
    shards: list[list[str]] = [[] for _ in range(options.shards)]
    for text in sorted(source.functions.values(), key=len, reverse=True):
        min(shards, key=lambda s: sum(map(len, s))).append(text)
    for isa in ISAS:
        for number, functions in enumerate(shards, start=1):
            path = options.out / f"loops_{isa}_{number}.cpp"
            write_if_changed(path, shard_text(isa, functions, PRELUDE))


if __name__ == "__main__":
    main()
