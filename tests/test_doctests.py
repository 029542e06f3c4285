"""The examples in the documentation of both packages, wherever they are installed."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import eager
import jit

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules() -> list[str]:
    found = []
    for package in (eager, jit):
        found.append(package.__name__)
        found += [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
    return sorted(name for name in set(found) if not name.endswith("._C"))


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [t for t in doctest.DocTestFinder().find(module) if t.examples]


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    failed = []
    for test in examples(importlib.import_module(name)):
        output: list[str] = []
        result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=output.append)
        if result.failed:
            failed.append("".join(output))
    assert not failed, "\n".join(failed)


def test_there_are_examples() -> None:
    assert sum(len(examples(importlib.import_module(n))) for n in modules()) >= 5
