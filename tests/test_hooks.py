"""Linters are named twice, in the Makefile and for pre-commit; this keeps them equal."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_hooks_run_the_linters_of_the_makefile():
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    commands = [line.strip() for line in recipe.splitlines()]
    assert [hook["entry"] for hook in repository["hooks"]] == commands
