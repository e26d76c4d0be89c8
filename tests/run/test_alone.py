import multiprocessing
import socket
import threading

import pytest

from keepset.run.alone import Presence


def _work(folder, pipe):
    presence = Presence(folder)
    pipe.send(presence.alone)
    threading.Event().wait()


@pytest.fixture
def start(tmp_path):
    """`start()`: a process that works in the folder; (process, whether it was alone)."""
    context, processes = multiprocessing.get_context("fork"), []

    def begin():
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(tmp_path, theirs), daemon=True)
        process.start()
        processes.append(process)
        assert ours.poll(60)
        return process, ours.recv()

    yield begin
    for process in processes:
        process.kill()
        process.join()


def test_the_first_is_alone_and_the_next_is_not(start):
    assert [start()[1] for _ in range(3)] == [True, False, False]


def test_the_killed_do_not_count(start):
    first, second = start()[0], start()[0]
    first.kill()
    first.join()
    assert not start()[1]
    second.kill()
    second.join()
    assert not start()[1]  # the third is still there


def test_after_a_crash_the_next_is_alone(start):
    process, _ = start()
    process.kill()
    process.join()
    assert start()[1]


def test_who_works_on_another_machine_cannot_be_seen(start, tmp_path):
    (tmp_path / f"running.not-{socket.gethostname()}").touch()
    assert not start()[1]


def test_on_a_disk_without_locks_nobody_is_alone(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert not Presence(tmp_path).alone


def test_the_presence_ends_with_its_object(tmp_path):
    first = Presence(tmp_path)
    assert first.alone
    assert not Presence(tmp_path).alone
    del first
    assert Presence(tmp_path).alone
