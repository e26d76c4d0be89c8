"""What a notebook imports: every name is there, documented, and its example runs."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keepset

ROOT = Path(__file__).parents[1]
WITHOUT_EXAMPLE = {"KeepsetError"}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # examples name the shipped specimens


@pytest.mark.parametrize("name", sorted({*keepset.__all__} - WITHOUT_EXAMPLE))
def test_the_example_of_a_public_name_runs(name):
    example = doctest.DocTestFinder(recurse=False).find(getattr(keepset, name), name)[0]
    assert example.examples, f"keepset.{name} has no example in its docstring"
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert result.failed == 0


def test_the_example_of_the_package_runs():
    result = doctest.testmod(keepset, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_type_checkers_see_the_same_names():
    source = (ROOT / "src/keepset/__init__.py").read_text(encoding="utf-8")
    block = source.partition("if TYPE_CHECKING:")[2].partition("__version__")[0]
    assert sorted(re.findall(r" as (\w+)", block)) == sorted(keepset.__all__)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'Ruler'"):
        keepset.Ruler  # noqa: B018


def test_importing_the_package_stays_light():
    check = "import sys, keepset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
