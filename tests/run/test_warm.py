"""A process that forks for every job: what a job gets, how its end is told, who ends whom."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from keepset.run import warm

pytestmark = pytest.mark.skipif(not warm.can_fork("cpu"), reason="jobs are forked on Linux alone")

JOBS = """
    import os, sys, time
    from pathlib import Path

    def tell(argument, shared_s):
        print(os.getcwd(), os.environ["COLOUR"], argument, shared_s > 0)
        print("to standard error", file=sys.stderr)

    def leave(argument, shared_s):
        sys.exit(argument)

    def fail(argument, shared_s):
        raise ValueError(argument)

    def kill(argument, shared_s):
        os.kill(os.getpid(), argument)

    def wait(argument, shared_s):
        Path(argument).write_text(str(os.getpid()))
        while not Path(argument).with_suffix(".go").exists():
            time.sleep(0.01)
        Path(argument).with_suffix(".done").touch()

    def threads(argument, shared_s):
        import torch
        torch.set_num_threads(argument)
        print(torch.get_num_threads(), torch.backends.mkl.is_available())
"""


@contextmanager
def warm_process(folder):
    """A warm process that knows the module `some_jobs`."""
    (folder / "some_jobs.py").write_text(textwrap.dedent(JOBS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv(warm.ADDRESS, "")  # put back afterwards
        start = warm.WarmStart()
        yield start
        start.stop()


@pytest.fixture
def warm_start(tmp_path):
    with warm_process(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """The same process, for all tests that leave it as it was."""
    with warm_process(tmp_path_factory.mktemp("jobs")) as start:
        yield start


def hand_over(function, argument, folder, **environment):
    """`hand_over` in a process of its own, as a job does it."""
    call = f"from keepset.run.warm import hand_over; print(hand_over({function!r}, {argument!r}))"
    return subprocess.run(
        [sys.executable, "-c", call],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": warm._SOURCE, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def started(function, argument, folder):
    call = f"from keepset.run.warm import hand_over; hand_over({function!r}, {argument!r})"
    environment = {**os.environ, "PYTHONPATH": warm._SOURCE}
    return subprocess.Popen([sys.executable, "-c", call], cwd=folder, env=environment)


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_job_has_the_folder_environment_and_streams_of_who_asks(warm_start, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    done = hand_over("some_jobs:tell", [1, "x"], folder, COLOUR="blue")
    assert done.stdout == f"{folder} blue [1, 'x'] True\n0\n"
    assert done.stderr == "to standard error\n"
    # Imports are charged to the first job alone.
    assert "False" in hand_over("some_jobs:tell", 2, folder, COLOUR="red").stdout


@pytest.mark.parametrize(
    ("function", "argument", "status"),
    [("leave", 7, 7), ("leave", None, 0), ("leave", "text", 1), ("kill", 9, 137)],
)
def test_its_exit_status_is_told(jobs, tmp_path, function, argument, status):
    done = hand_over(f"some_jobs:{function}", argument, tmp_path)
    assert done.stdout.splitlines()[-1] == str(status)


def test_an_exception_keeps_its_traceback(jobs, tmp_path):
    done = hand_over("some_jobs:fail", "no such layer", tmp_path)
    assert done.stdout == "1\n"
    assert "ValueError: no such layer" in done.stderr
    assert "Traceback" in done.stderr


def test_a_job_may_have_threads(jobs, tmp_path):
    assert hand_over("some_jobs:threads", 2, tmp_path).stdout.startswith("2 ")


def test_a_job_ends_with_who_asked_for_it(jobs, tmp_path):
    client = started("some_jobs:wait", str(tmp_path / "job"), tmp_path)
    wait_for(lambda: (tmp_path / "job").exists() and (tmp_path / "job").read_text())
    process = int((tmp_path / "job").read_text())
    client.kill()
    client.wait()
    wait_for(lambda: not alive(process))
    assert not (tmp_path / "job.done").exists()


def test_running_jobs_end_well_after_the_last_is_taken(warm_start, tmp_path):
    client = started("some_jobs:wait", str(tmp_path / "job"), tmp_path)
    wait_for(lambda: (tmp_path / "job").exists())
    address = os.environ[warm.ADDRESS]
    warm_start.stop()
    wait_for(
        lambda: "None" in hand_over("os:getpid", 0, tmp_path, **{warm.ADDRESS: address}).stdout
    )
    (tmp_path / "job.go").touch()
    assert client.wait(timeout=60) == 0
    assert (tmp_path / "job.done").exists()
    assert warm_start._process.wait(timeout=60) == 0


def test_it_ends_when_who_started_it_is_killed(tmp_path):
    call = """
        import os, time
        from keepset.run import warm
        print(warm.WarmStart()._process.pid, flush=True)
        time.sleep(60)
    """
    starter = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(call)],
        env={**os.environ, "PYTHONPATH": warm._SOURCE},
        stdout=subprocess.PIPE,
        text=True,
    )
    process = int(starter.stdout.readline())
    assert alive(process)
    starter.kill()
    starter.communicate()
    wait_for(lambda: not alive(process))


def test_without_such_a_process_nobody_takes_the_job(monkeypatch):
    monkeypatch.delenv(warm.ADDRESS, raising=False)
    assert warm.hand_over("builtins:print", "job") is None
    monkeypatch.setenv(warm.ADDRESS, warm._address("nobody"))
    assert warm.hand_over("builtins:print", "job") is None


def test_another_python_does_not_take_the_job(jobs, monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/opt/another")
    assert warm.hand_over("builtins:print", "job") is None


def test_jobs_are_forked_on_a_cpu_alone(monkeypatch):
    assert not warm.can_fork("cuda")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not warm.can_fork("cpu")
