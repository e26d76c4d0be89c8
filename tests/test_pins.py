"""One list of pins: requirements.txt. Whatever repeats it must agree."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from keepset.settings.figures import FIGURES

ROOT = Path(__file__).parents[1]


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("requirements*.txt")))
def test_every_requirement_is_pinned_exactly(name):
    for pin in pins(name):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+(\[[a-z,]+\])?==[0-9][0-9A-Za-z.]*", pin), pin


def environment(name):
    """The pip pins of a conda environment."""
    content = yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())
    (nested,) = [part["pip"] for part in content["dependencies"] if isinstance(part, dict)]
    plain = [part for part in content["dependencies"] if not isinstance(part, dict)]
    assert plain == ["python=3.11", "pip"]
    assert content["channels"] == ["conda-forge", "nodefaults"]
    return nested


@pytest.mark.parametrize("name", ["study", "kernels"])
def test_conda_environments_hold_the_same_pins(name):
    assert environment(name) == pins("requirements.txt")


def test_the_environment_of_harness_tasks_adds_the_harness_to_them():
    expected = pins("requirements.txt") + pins("requirements-harness.txt")
    assert environment("harness") == expected


def test_the_figures_environment_holds_a_part_of_them():
    figures = environment("figures")
    assert [pin for pin in pins("requirements.txt") if pin in figures] == figures
    assert not any(pin.startswith(("torch", "transformers")) for pin in figures)


def test_drawing_imports_nothing_that_its_environment_lacks():
    here = {name for name, of in importlib.metadata.packages_distributions().items()
            if {canonical(one) for one in of} & lacked()}  # fmt: skip
    assert {"torch", "scipy", "statsmodels"} <= here
    blocked = f"import sys; sys.modules.update(dict.fromkeys({sorted(here)}))"
    modules = [f"keepset.report.figures.{name}" for name in FIGURES]
    drawing = f"import keepset.steps.drawing, keepset.run.step, {', '.join(modules)}"
    done = subprocess.run(
        [sys.executable, "-c", f"{blocked}; {drawing}"],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def canonical(requirement):
    """The name of a distribution, without version and extras."""
    return re.split(r"[=\[]", requirement)[0].lower().replace("_", "-")


def lacked():
    """What the requirements name and the environment of the figures does not."""
    held = {canonical(pin) for pin in environment("figures")}
    return {canonical(pin) for pin in pins("requirements.txt")} - held


def test_what_is_built_after_conda_is_pinned_as_in_the_requirements():
    script = (ROOT / "envs/kernels.post-deploy.sh").read_text()
    assert re.findall(r"[a-z0-9-]+==[0-9a-z.]+", script) == pins("requirements-kernels.txt")


def test_every_environment_is_one_of_these():
    assert {path.name for path in (ROOT / "envs").iterdir()} == {
        *("study.yaml", "figures.yaml", "harness.yaml", "kernels.yaml", "kernels.post-deploy.sh")
    }


def test_what_runs_here_is_what_is_pinned():
    for pin in pins("requirements.txt"):
        name, version = re.split(r"==", re.sub(r"\[.*\]", "", pin))
        assert importlib.metadata.version(name).split("+")[0] == version
