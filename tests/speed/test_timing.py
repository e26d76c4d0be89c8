import numpy as np
import pytest
import torch

from keepset.errors import KeepsetError
from keepset.speed import timing


def test_runs_take_turns_and_copies():
    machine = timing.Machine(torch.device("cpu"), 1 << 16, 1e9)
    seen = []
    runs = {name: lambda copy, name=name: seen.append((name, copy)) for name in ("dense", "sparse")}
    took = timing.in_turn(runs, 2, machine, 0.0)
    rounds = timing.LEAST_ROUNDS
    assert {name: len(values) for name, values in took.items()} == dict.fromkeys(runs, rounds)
    expected = [(name, turn % 2) for turn in range(rounds + 1) for name in ("dense", "sparse")]
    assert seen == expected


def test_a_speed_up_is_dense_over_sparse_round_by_round():
    dense, sparse = np.array([2.0, 4.0, 6.0]), np.array([1.0, 1.0, 1.0])
    row = timing.summary(sparse, dense)
    assert row["speedup_p50"] == 4
    assert row["speedup_p20"] < 4 < row["speedup_p80"]
    assert (row["ms_p50"], row["dense_ms_p50"], row["rounds"]) == (1000, 4000, 3)


@pytest.mark.parametrize("wrong", [1e-4, float("nan")])
def test_a_wrong_result_is_not_timed(wrong):
    expected = torch.ones(50, dtype=torch.float64)
    timing.must_agree(torch.ones(50), expected, "right")
    with pytest.raises(KeepsetError, match="no time is reported"):
        timing.must_agree(torch.ones(50) + wrong, expected, "wrong")


def test_a_machine_is_measured(monkeypatch):
    monkeypatch.setattr(timing, "cache_bytes", lambda _: 1 << 20)
    machine = timing.machine_of(torch.device("cpu"))
    assert 1e7 < machine.bandwidth < 1e13


def test_the_cache_is_the_largest_one():
    assert 1 << 18 <= timing.cache_bytes(torch.device("cpu")) <= 1 << 33
