"""The directory of a checkpoint: names, manifests, checksums."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from eager.errors import SerializationError, helpful

Path_ = str | os.PathLike[str]
FORMAT = "eager.distributed.checkpoint 1"
MANIFEST = "manifest.json"
HIDDEN = ".writing-"
_SHARD = re.compile(r"shard-\d{5}-of-\d{5}\.safetensors")
_MANIFEST_LIMIT = 64 << 20


def manifests(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The checkpoints in `root` whose manifests can be read, newest first."""
    found = []
    try:
        folders = list(root.iterdir())
    except OSError:
        return []
    for folder in folders:
        if folder.name.startswith(HIDDEN):
            continue
        try:
            found.append((folder, manifest(folder)))
        except SerializationError:
            continue
    return sorted(found, key=lambda pair: -pair[1]["number"])


def damaged(folder: Path, problem: str) -> Exception:
    """The error for a checkpoint that is not whole."""
    return helpful(
        SerializationError, f"checkpoint {str(folder)!r}", "it is damaged or incomplete",
        expected="a directory that checkpoint.save has made", given=problem,
        hint="latest() finds the newest checkpoint that is whole",
    )  # fmt: skip


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest, with every field of the type it should have."""
    try:
        with (folder / MANIFEST).open("rb") as f:
            data = f.read(_MANIFEST_LIMIT + 1)
        content = json.loads(data) if len(data) <= _MANIFEST_LIMIT else None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder, f"{MANIFEST}: {error}") from error
    shards = content.get("shards") if isinstance(content, dict) else None
    fine = (
        isinstance(content, dict)
        and content.get("format") == FORMAT
        and type(content.get("number")) is int
        and isinstance(shards, list)
        and bool(shards)
        and all(
            isinstance(s, dict)
            and isinstance(s.get("name"), str)
            and _SHARD.fullmatch(s["name"]) is not None
            and type(s.get("bytes")) is int
            and isinstance(s.get("sha256"), str)
            for s in shards
        )
        and len({s["name"] for s in shards}) == len(shards)
    )
    if not fine:
        raise damaged(folder, f"{MANIFEST} is not one of {FORMAT!r}")
    assert isinstance(content, dict)
    return content


def digest(file: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    size = 0
    with file.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
