"""Snakemake reads configuration files by itself; what it gets wrong is refused all the same."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]


def dry_run(folder, *arguments):
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "-n"]
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_folder_without_a_configuration_says_where_to_copy_one_from(tmp_path):
    status, output = dry_run(tmp_path)
    assert status != 0
    assert f"{tmp_path} has no config.yaml: give a study with --configfile, or copy" in output
    assert f"{ROOT}/config.yaml into this folder" in output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  no: {path: a}", 'reads no as true or false; put it in quotes: "no"'),
        ("  1_3: {path: a}", 'put it in quotes: "1_3"'),
        ("  relu-l1: {path: a}\n  relu-l1: {path: b}", "the key relu-l1 is given twice"),
    ],
)
def test_keys_that_snakemake_has_changed_are_refused(tmp_path, line, message):
    text = (ROOT / "config.yaml").read_text().replace("\nmodels:\n", f"\nmodels:\n{line}\n")
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text(text)
    for arguments in ((), ("--configfile", "other.yaml")):
        status, output = dry_run(tmp_path, *arguments)
        assert status != 0
        assert message in output


def test_a_name_on_the_command_line_is_taken_in_brackets(tmp_path):
    shutil.copyfile(ROOT / "config.yaml", tmp_path / "config.yaml")
    status, output = dry_run(tmp_path, "--config", "only=1_3")
    assert status != 0
    assert "put it in brackets: only=[NAME]" in output
    status, output = dry_run(tmp_path, "--config", "only=[1_3]")
    assert "only: unknown model 1_3" in output
