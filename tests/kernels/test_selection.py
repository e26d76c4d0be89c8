"""What may run: chosen by name or auto, tried before it is trusted, and said when it is refused."""

from __future__ import annotations

import pytest
import torch
from checks import DEVICE

from keepset.errors import ConfigError, KernelError
from keepset.kernels import dispatch, selection
from keepset.kernels.selection import TRITON_DOWN, TRITON_FFN, Selection, why_not_numba
from keepset.kernels.torch_ffn import DOWN_PATHS
from keepset.settings import Kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def without_triton(monkeypatch):
    def missing():
        raise KernelError("this path needs Triton: pip install --no-deps triton==3.9.0")

    monkeypatch.setattr(selection, "_interpreted", missing)


def test_a_word_stands_for_all():
    assert Selection("torch").wanted == Kernels(ffn="torch", scan="torch", state="torch")
    assert Selection("triton").wanted == Kernels(ffn="triton", scan="auto", state="triton")
    assert Selection("numba").wanted == Kernels(ffn="numba", scan="numba", state="auto")
    with pytest.raises(ConfigError, match="'cuda' is not known; choose auto, torch, numba, triton"):
        Selection("cuda")


def test_a_selection_is_shared_and_a_choice_makes_a_new_one():
    shared = Selection("torch")
    assert Selection.of(shared) is shared
    assert Selection.of(shared.wanted).wanted == shared.wanted
    assert Selection.of(None).wanted == Kernels()


def test_what_is_named_and_missing_says_what_to_install(without_triton):
    for key in ("ffn", "state"):
        with pytest.raises(ConfigError, match=rf"kernels\.{key}: .*pip install .*triton==3\.9\.0"):
            Selection(Kernels(**{key: "triton"})).require(CPU)
    Selection("auto").require(CUDA)
    assert dispatch.down_paths(Selection("auto"), CUDA) == DOWN_PATHS


def test_compiled_kernels_are_not_for_a_cpu(monkeypatch):
    monkeypatch.setattr(selection, "_interpreted", lambda: False)
    with pytest.raises(ConfigError, match="CUDA GPUs, not on cpu"):
        Selection("triton").require(CPU)
    assert selection.why_not_triton(CUDA) is None


def test_numba_runs_on_a_cpu_where_it_is_installed():
    for key in ("ffn", "scan"):
        assert Selection("auto").may_use_numba(key, CPU)
        assert Selection(Kernels(**{key: "numba"})).may_use_numba(key, CPU)
        assert not Selection("torch").may_use_numba(key, CPU)
    assert not Selection(Kernels(ffn="triton")).may_use_numba("ffn", CPU)
    assert not Selection(Kernels(ffn="triton")).may_use_numba("ffn", CUDA)
    Selection("numba").require(CPU)


@pytest.mark.parametrize("key", ["ffn", "scan"])
def test_numba_by_name_says_why_it_cannot_run(key, without_numba):
    chosen, auto = Selection(Kernels(**{key: "numba"})), Selection("auto")
    for device, reason in ((CPU, "pip install numba==0.68.1"), (CUDA, "CPUs, not on cuda")):
        assert reason in why_not_numba(device)
        assert not auto.may_use_numba(key, device)
        with pytest.raises(ConfigError, match=rf"kernels.{key}: .*{reason}.*: torch or auto"):
            chosen.require(device)


def test_paths_follow_the_choice(monkeypatch):
    monkeypatch.setattr(selection, "_interpreted", lambda: True)
    auto, torch_alone, triton = map(Selection, ("auto", "torch", "triton"))
    assert set(dispatch.down_paths(auto, CPU)) == {*DOWN_PATHS}  # the interpreter is no speed-up
    assert set(dispatch.down_paths(auto, CUDA)) == {*DOWN_PATHS, TRITON_DOWN}
    assert set(dispatch.down_paths(torch_alone, CUDA)) == {*DOWN_PATHS}
    assert set(dispatch.down_paths(triton, CPU)) == {*DOWN_PATHS, TRITON_DOWN}
    assert set(dispatch.down_paths(triton, CPU, rows=17, set_per_row=True)) == {*DOWN_PATHS}
    assert TRITON_DOWN in dispatch.down_paths(triton, CPU, rows=17)


def test_a_down_projection_takes_what_is_named():
    h, rows = torch.randn(2, 40, device=DEVICE), torch.randn(40, 24, device=DEVICE)
    kept = torch.rand(2, 40, device=DEVICE) < 0.5
    for chosen, name in ((Selection("triton"), TRITON_DOWN), (Selection(forced=["bag"]), "bag")):
        assert dispatch.down_path(chosen, h, kept, [rows], None) == name
        assert not chosen.crossovers_ms()


def test_the_fastest_candidate_is_taken_and_timed_once():
    timed, numbers = Selection(rounds=4), []

    def slow(number):
        numbers.append(number)
        sum(range(30_000))

    candidates = {"slow": slow, "fast": lambda number: number}
    assert timed.fastest(("key", 1), candidates) == "fast"
    assert numbers == [0, 2, 4, 6, 8]  # one round warms up
    assert timed.fastest(("key", 1), candidates) == "fast"
    assert len(numbers) == 5
    assert set(timed.crossovers_ms()["key 1"]) == {"slow", "fast"}
    assert timed.timing_s > 0
    assert Selection(forced=["slow"]).fastest(("key", 1), candidates) == "slow"


def wrong(_: int) -> torch.Tensor:
    return torch.tensor([1.0, 2.5])


def refusing(_: int) -> torch.Tensor:
    raise KernelError("no such shape")


@pytest.mark.parametrize(
    ("run", "message"), [(wrong, "its result is off by 0.5"), (refusing, "no such shape")]
)
def test_what_fails_or_lies_is_left_out_and_said_once(caplog, run, message):
    candidates = {"plain": lambda _: torch.tensor([1.0, 2.0]), TRITON_FFN: run}
    trying = Selection()
    for _ in range(2):
        assert trying.fastest_ffn(("key",), candidates) == "plain"
    assert [record.message.count(message) for record in caplog.records] == [1]
    (text,) = trying.refusals
    assert text.startswith(TRITON_FFN)
    assert message in text


def test_a_named_path_is_not_timed(monkeypatch):
    monkeypatch.setattr(selection, "time_rounds", lambda *_: pytest.fail("timed"))
    right = {name: lambda _: torch.tensor([1.0, 2.0]) for name in ("plain", TRITON_FFN)}
    assert Selection("triton").fastest_ffn(("key",), right) == TRITON_FFN
    assert Selection("triton", forced=["plain"]).fastest_ffn(("key",), right) == "plain"


def test_two_selections_do_not_see_each_other():
    first, second = Selection("triton", forced=["slow"]), Selection()
    first.refuse(TRITON_FFN, "no such shape")
    first.times(("key",), {"fast": lambda _: None})
    assert not second.refusals
    assert not second.crossovers_ms()
    assert second.timing_s == 0
    assert second.forced == ()
    assert second.wanted == Kernels()
