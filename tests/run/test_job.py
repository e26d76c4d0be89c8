import logging
import os
import subprocess
import sys

import pytest
import torch

from keepset.errors import TextError
from keepset.run.job import job


def test_errors_become_one_line_and_a_status(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught, job(tmp_path / "log", 1):
        raise TextError("corpora.wiki: too short")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: corpora.wiki: too short\n"
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_full_disk_is_an_error_too(tmp_path, capsys):
    with pytest.raises(SystemExit), job(tmp_path / "log", 1):
        raise OSError(28, "No space left on device")
    assert "No space left" in capsys.readouterr().err


WRITES = {
    "table": """
import numpy, pandas
from keepset.files.store import write_table
def write(path):
    table = pandas.DataFrame({"nll": numpy.random.default_rng(0).normal(size=10_000)})
    write_table(table, path, {})
""",
    "tensors": """
import torch
from safetensors.torch import save_file
from keepset.files.store import replacing
def write(path):
    with replacing(path) as temporary:
        save_file({"x": torch.rand(10_000)}, temporary)
""",
}


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize("kind", WRITES)
def test_a_disk_that_fills_up_leaves_no_half_result(tmp_path, kind):
    # A limit on the size of files stands in for the full disk: the same error at the same place.
    program = f"""
import resource, sys
from keepset.run.job import job
{WRITES[kind]}
with job({str(tmp_path / "log")!r}, 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    write({str(tmp_path / "result")!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_bugs_keep_their_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), job(tmp_path / "log", 1):
        raise ZeroDivisionError


def test_the_log_gets_messages_and_threads_are_set(tmp_path):
    with job(tmp_path / "deep" / "log", 1):
        logging.getLogger("keepset").info("half way")
        assert torch.get_num_threads() == 1
    assert "half way" in (tmp_path / "deep" / "log").read_text()


@pytest.mark.parametrize(("network", "offline"), [(False, True), (True, False)])
def test_only_jobs_that_prepare_reach_the_hub(tmp_path, monkeypatch, network, offline):
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with job(tmp_path / "log", 1, network=network):
        assert huggingface_hub.is_offline_mode() is offline
        assert (os.environ["HF_HUB_OFFLINE"] == "1") is offline
