"""One list of pins: requirements.txt. Whatever repeats it must agree."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize(
    "name",
    [
        "requirements.txt",
        "requirements-dev.txt",
        "requirements-data.txt",
        "requirements-mamba-ssm.txt",
    ],
)
def test_every_requirement_is_pinned_exactly(name):
    for pin in pins(name):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+(\[[a-z,]+\])?==[0-9][0-9A-Za-z.]*", pin), pin


def test_conda_environments_hold_the_same_pins():
    environment = yaml.safe_load((ROOT / "envs/study.yaml").read_text())
    (nested,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    assert nested == pins("requirements.txt")


def test_what_runs_here_is_what_is_pinned():
    for pin in pins("requirements.txt"):
        name, version = re.split(r"==", re.sub(r"\[.*\]", "", pin))
        assert importlib.metadata.version(name).split("+")[0] == version
