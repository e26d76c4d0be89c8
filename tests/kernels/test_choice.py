"""What may run: chosen by name or auto, tried before it is trusted, and said when it is refused."""

from __future__ import annotations

import pytest
import torch

from keepset.errors import ConfigError, KernelError
from keepset.kernels import calibrate, choice, dispatch
from keepset.kernels.choice import TRITON_DOWN, TRITON_FFN, choosing
from keepset.kernels.torch_ffn import DOWN_PATHS
from keepset.settings import Kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def without_triton(monkeypatch):
    def missing():
        raise KernelError("this path needs Triton: pip install --no-deps triton==3.9.0")

    monkeypatch.setattr(choice, "_interpreted", missing)


@pytest.fixture
def refused(monkeypatch):
    found: dict[str, None] = {}
    monkeypatch.setattr(choice, "_refused", found)
    return found


def test_a_word_stands_for_all_and_is_taken_back():
    before = choice.chosen()
    with choosing("torch") as chosen:
        assert chosen == Kernels(ffn="torch", scan="torch", state="torch")
        with choosing("triton"):
            assert choice.chosen() == Kernels(ffn="triton", scan="auto", state="triton")
        assert choice.chosen() is chosen
    assert choice.chosen() is before
    assert calibrate.forced({TRITON_FFN: None}) is None
    with pytest.raises(ConfigError, match="'cuda' is not known; choose auto, torch, triton"):
        choice.as_kernels("cuda")


def test_what_is_named_and_missing_says_what_to_install(without_triton):
    for key in ("ffn", "state"):
        with (
            choosing(Kernels(**{key: "triton"})),
            pytest.raises(ConfigError, match=rf"kernels\.{key}: .*pip install .*triton==3\.9\.0"),
        ):
            choice.require(CPU)
    with choosing("auto"):
        choice.require(CUDA)
        assert dispatch.down_paths(CUDA) == DOWN_PATHS


def test_compiled_kernels_are_not_for_a_cpu(monkeypatch):
    monkeypatch.setattr(choice, "_interpreted", lambda: False)
    with choosing("triton"), pytest.raises(ConfigError, match="CUDA GPUs, not on cpu"):
        choice.require(CPU)
    assert choice.why_not_triton(CUDA) is None


def test_paths_follow_the_choice(monkeypatch):
    monkeypatch.setattr(choice, "_interpreted", lambda: True)
    with choosing("auto"):
        assert set(dispatch.down_paths(CPU)) == {*DOWN_PATHS}  # the interpreter is no speed-up
        assert set(dispatch.down_paths(CUDA)) == {*DOWN_PATHS, TRITON_DOWN}
    with choosing("torch"):
        assert set(dispatch.down_paths(CUDA)) == {*DOWN_PATHS}
    with choosing("triton"):
        assert set(dispatch.down_paths(CPU)) == {*DOWN_PATHS, TRITON_DOWN}
        assert set(dispatch.down_paths(CPU, rows=17, own=True)) == {*DOWN_PATHS}
        assert TRITON_DOWN in dispatch.down_paths(CPU, rows=17)


def test_a_down_projection_takes_what_is_named():
    h, rows = torch.randn(2, 40), torch.randn(40, 24)
    kept = torch.rand(2, 40) < 0.5
    for word, name in (("triton", TRITON_DOWN), ("torch", "select")):
        with choosing(word), calibrate.forcing(*(["select"] if word == "torch" else [])):
            assert dispatch.down_path(h, kept, [rows], None) == name


def wrong(_: int) -> torch.Tensor:
    return torch.tensor([1.0, 2.5])


def refusing(_: int) -> torch.Tensor:
    raise KernelError("no such shape")


@pytest.mark.parametrize(
    ("run", "message"), [(wrong, "its result is off by 0.5"), (refusing, "no such shape")]
)
def test_what_fails_or_lies_is_left_out_and_said_once(refused, caplog, run, message):
    candidates = {"plain": lambda _: torch.tensor([1.0, 2.0]), TRITON_FFN: run}
    for _ in range(2):
        assert dispatch.fastest(("key", message), candidates) == "plain"
    assert [record.message.count(message) for record in caplog.records] == [1]
    (text,) = choice.refusals()
    assert text.startswith(TRITON_FFN)
    assert message in text


def test_a_named_path_is_not_timed(monkeypatch):
    monkeypatch.setattr(calibrate, "times", lambda *_: pytest.fail("timed"))
    right = {name: lambda _: torch.tensor([1.0, 2.0]) for name in ("plain", TRITON_FFN)}
    with choosing("triton"):
        assert dispatch.fastest("key", right) == TRITON_FFN
        with calibrate.forcing("plain"):
            assert dispatch.fastest("key", right) == "plain"
