"""GPUs are claimed by processes; here they are made up, and the processes are real."""

import multiprocessing
import os
import tempfile
import threading

import pytest
import torch

from keepset import models
from keepset.models import gpus


@pytest.fixture(autouse=True)
def _own_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def _hold(pipe, count, visible):
    gpus.claim.cache_clear()
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: count
    first, second = (models.resolve_device(name) for name in ("auto", "cuda"))
    assert first == second  # a process keeps what it has
    pipe.send(first.index)
    threading.Event().wait()


@pytest.fixture
def start():
    """`start(count, visible)`: a process that claims a GPU and holds it; (process, its index)."""
    context, processes = multiprocessing.get_context("fork"), []

    def begin(count, visible=None):
        ours, theirs = context.Pipe()
        process = context.Process(target=_hold, args=(theirs, count, visible), daemon=True)
        process.start()
        processes.append(process)
        assert ours.poll(60), "the process said nothing"
        return process, ours.recv()

    yield begin
    for process in processes:
        process.kill()
        process.join()


def test_jobs_on_one_machine_take_different_gpus(start):
    assert [start(4)[1] for _ in range(4)] == [0, 1, 2, 3]


def test_a_killed_job_gives_its_gpu_back(start):
    held = [start(2)[0] for _ in range(2)]
    held[1].kill()
    held[1].join()
    assert start(2)[1] == 1


def test_only_visible_gpus_are_taken_and_told_apart_by_name(start):
    assert start(2, "4,5")[1] == 0  # GPU 4
    assert start(3, "3,4,5")[1] == 0  # GPU 3
    assert start(3, "3,4,5")[1] == 2  # GPU 5: 3 and 4 are taken
    assert start(1, "5")[1] == 0  # the only one that this job may see


def test_more_jobs_than_gpus_share(start):
    taken = [start(2)[1] for _ in range(3)]
    assert taken[:2] == [0, 1]
    assert taken[2] in (0, 1)


def test_a_named_gpu_is_used_as_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert models.resolve_device("cuda:2").index == 2
