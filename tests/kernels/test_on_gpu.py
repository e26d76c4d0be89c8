"""The command of `make test-gpu`: what it counts, and what it says where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import on_gpu

    return on_gpu


@pytest.fixture
def steps(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Steps whose tests are those of a file that is given."""
    monkeypatch.setattr(script, "FOR_TABLE", 0)
    monkeypatch.setattr(script, "ROOT", tmp_path)

    def run(code: str, seconds: float = 60) -> ModuleType:
        (tmp_path / "test_it.py").write_text(f"import pytest, time\n{code}")
        found = script.Steps(seconds, tmp_path, script.environment(None, tmp_path))
        found.tests("step", "test_it.py")
        return found.outcomes["step"]

    return run


def test_a_skipped_test_was_not_run(steps, script) -> None:
    outcome = steps(
        "def test_a(): pass\n"
        "def test_b(): assert False\n"
        "def test_c(): pytest.skip('no such package')\n"
    )
    assert (outcome.passed, outcome.failed) == (1, 1)
    said = list(script.lines({"step": outcome}))
    assert said[0] == "step: 1 passed, 1 failed, 1 not run"
    assert "not run: test_c: no such package" in said[1]


def test_a_step_that_ends_without_a_report_has_failed(steps) -> None:
    assert steps("import os\nos._exit(3)").failed == 1


def test_a_step_that_takes_too_long_is_neither_passed_nor_failed(steps) -> None:
    outcome = steps("time.sleep(30)", seconds=2)
    assert (outcome.passed, outcome.failed, outcome.not_run) == (0, 0, ["its time was over"])


def test_what_cannot_be_imported_is_not_run(script, tmp_path: Path) -> None:
    found = script.Steps(60, tmp_path, script.environment(None, tmp_path))
    assert not found.where("step", "import no_such_package", "it is not there")
    assert found.outcomes["step"].not_run == ["it is not there"]
    assert found.where("other", "import sys", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_run() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/on_gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no GPU: torch sees none, so nothing was run" in done.stderr
    assert "passed" not in done.stdout
