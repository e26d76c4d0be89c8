"""Everything that a GPU is needed for, in one command: `make test-gpu`.

    python benchmarks/on_gpu.py [--wheels FOLDER] [--out benchmarks/gpu_kernels.csv] [--minutes 8]

Any Python that has torch, Triton and pytest will do, with or without keepset installed. What it
lacks (transformers, pydantic, mamba-ssm, ...) is taken from the wheels of a folder; nothing is
downloaded. Each step is a process of its own. What is skipped, or ends after its time, is listed as
not run and never counted as passed. The command fails where a step fails, or where there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOR_TABLE = 120
"""Seconds that steps leave for the benchmark, the last one."""

_MACHINE = """
import importlib.metadata, sys, torch
if not torch.cuda.is_available():
    sys.exit("no GPU: torch sees none, so nothing was run")
versions = [f"{name} {importlib.metadata.version(name)}"
            for name in ("torch", "triton", "transformers", "pytest")]
print(torch.cuda.get_device_name(), *versions, sep=", ")
"""
_MAMBA_SSM = "from mamba_ssm.ops.triton import selective_state_update, ssd_combined"


@dataclass
class Outcome:
    """What became of a step: counts, and what was not run with the reason."""

    passed: int = 0
    failed: int = 0
    not_run: list[str] = field(default_factory=list)


def tested(report: Path) -> Outcome:
    """The outcome that pytest's report in JUnit's format tells; a skipped test was not run."""
    outcome = Outcome()
    for case in ET.parse(report).getroot().iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
        elif skipped is not None:
            outcome.not_run.append(f"{case.get('name')}: {skipped.get('message')}")
        else:
            outcome.passed += 1
    return outcome


class Steps:
    """Runs steps until the time is over."""

    def __init__(self, seconds: float, folder: Path, environment: dict[str, str]) -> None:
        """`folder`: for what steps leave; `environment`: their variables."""
        self._end = time.monotonic() + seconds
        self._folder, self._environment = folder, environment
        self.outcomes: dict[str, Outcome] = {}

    def tests(self, name: str, *paths: str, workers: int = 0) -> None:
        """Run tests, with so many processes where pytest-xdist is there."""
        report = self._folder / f"{len(self.outcomes)}.xml"
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        if workers and self._can("import xdist"):
            command += ["-n", str(workers)]
        code = self._run(name, [*command, *paths], FOR_TABLE)
        if report.exists():
            self.outcomes[name] = tested(report)
        if code is None:
            self.outcomes.setdefault(name, Outcome()).not_run.append("its time was over")
        elif code and not self.outcomes.setdefault(name, Outcome()).failed:
            self.outcomes[name].failed = 1

    def script(self, name: str, *arguments: str) -> None:
        """Run a script, which passes or fails."""
        code = self._run(name, arguments, 0)
        late = ["its time was over"] if code is None else []
        self.outcomes[name] = Outcome(int(code == 0), int(bool(code)), late)

    def where(self, name: str, code: str, reason: str) -> bool:
        """Whether `code` runs; if it does not, the step `name` is not run for this reason."""
        if not self._can(code):
            self.outcomes[name] = Outcome(not_run=[reason])
        return name not in self.outcomes

    def _can(self, code: str) -> bool:
        command = [sys.executable, "-c", code]
        return not subprocess.run(
            command, env=self._environment, capture_output=True, check=False
        ).returncode

    def _run(self, name: str, arguments: Sequence[str], reserve: float) -> int | None:
        """The exit code; None where the time is over, less `reserve` seconds."""
        print(f"\n== {name}", flush=True)
        left = self._end - time.monotonic() - reserve
        if left <= 0:
            return None
        command = [sys.executable, *arguments]
        try:
            return subprocess.run(
                command, cwd=ROOT, env=self._environment, timeout=left, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return None


def lines(outcomes: dict[str, Outcome]) -> Iterator[str]:
    """The summary, a line for each step and each thing that was not run."""
    for name, one in outcomes.items():
        yield f"{name}: {one.passed} passed, {one.failed} failed, {len(one.not_run)} not run"
        yield from (f"  not run: {reason}" for reason in one.not_run)


def environment(wheels: Path | None, folder: Path) -> dict[str, str]:
    """Variables of the steps: keepset from this checkout, and what the wheels hold."""
    paths = [str(ROOT / "src")]
    if wheels is not None:
        site = folder / "site"
        install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
        files = [str(path) for path in sorted(wheels.glob("*.whl"))]
        subprocess.run([sys.executable, *install, str(site), *files], check=True)
        paths.append(str(site))
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # The references are in float32; Triton's default for products of float32 has ten bits.
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "TRITON_F32_DEFAULT": "ieee"}


def main() -> int:
    """Run the steps, and say what became of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to take packages from")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/gpu_kernels.csv")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    asked = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        variables = environment(asked.wheels, folder)
        steps = Steps(60 * asked.minutes, folder, variables)
        steps.script("machine", "-c", _MACHINE)
        if not steps.outcomes["machine"].passed:
            return 1
        kernels = sorted(str(path) for path in (ROOT / "tests/kernels").glob("test_triton_*.py"))
        steps.tests("graphs, waiting, races", "tests/kernels/check_gpu.py", workers=8)
        steps.tests("kernels against references", *kernels, workers=8)
        reason = "mamba_ssm cannot be imported: give its wheel with --wheels"
        if steps.where("mamba-ssm", _MAMBA_SSM, reason):
            steps.tests("mamba-ssm", "tests/kernels/check_mamba_ssm.py")
        steps.tests(
            "models that decode", "tests/decode/test_decode_kernels.py",
            "tests/kernels/test_mixers.py", workers=8,
        )  # fmt: skip
        steps.script("table", "benchmarks/gpu_kernels.py", "--out", str(asked.out.resolve()))
    print(f"\n== after {time.monotonic() - start:.0f} s", *lines(steps.outcomes), sep="\n")
    return int(any(one.failed for one in steps.outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
