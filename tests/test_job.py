import logging

import pytest
import torch

from keepset.errors import TextError
from keepset.job import job


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


def test_bugs_keep_their_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), job(tmp_path / "log", 1):
        raise ZeroDivisionError


def test_the_log_gets_messages_and_threads_are_set(tmp_path):
    with job(tmp_path / "deep" / "log", 1):
        logging.getLogger("keepset").info("half way")
        assert torch.get_num_threads() == 1
    assert "half way" in (tmp_path / "deep" / "log").read_text()
