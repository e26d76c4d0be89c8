"""The gated delta rule that numba compiles against plain float64, and against the torch path."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

from decoding import prompt, reference
from keepset.decode import generate as gen
from keepset.errors import ConfigError, ModelError
from keepset.hold.memories.delta import DeltaScan
from keepset.hold.state import StateWindows
from keepset.kernels.dispatch import CONV
from keepset.kernels.mixers import mixer_kernels, provider_for
from keepset.kernels.numba_delta import delta_rule
from keepset.kernels.selection import Selection
from keepset.kinds import find_sites
from keepset.measure.runner import Runner
from keepset.rules.rule import Rule
from keepset.settings import Kernels
from keepset.sites.memories.delta import GATED
from state_models import shape

NUMBA = delta_rule(torch_chunk_gated_delta_rule)
SITE: Any = SimpleNamespace(key="state.000", name="layers.0", n_state=7, n_groups=2)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """Gradients are left to torch: with them nothing here would be compiled."""
    with torch.no_grad():
        yield


def inputs(tokens: int, groups: int = 2, n: int = 7, head_dim: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(tokens * 31 + groups)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    batch, heads = 2, 4
    return {
        "query": draw(batch, tokens, groups, n),
        "key": draw(batch, tokens, groups, n),
        "value": draw(batch, tokens, heads, head_dim),
        "g": -draw(batch, tokens, heads).abs() / 4,
        "beta": draw(batch, tokens, heads).sigmoid(),
        "initial_state": draw(batch, heads, n, head_dim),
    }


def plain(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """y and the last state, written down as the rule is defined, in float64."""
    part = {name: values.double() for name, values in given.items()}
    heads = part["value"].shape[2]
    query, key = (
        (v / (v.square().sum(-1, keepdim=True) + 1e-6).sqrt()).repeat_interleave(
            heads // v.shape[2], dim=2
        )
        for v in (part["query"], part["key"])
    )
    state, rows = part["initial_state"], [part["value"][:, :0]]
    for t in range(key.shape[1]):
        state = state * part["g"][:, t, :, None, None].exp()
        held = torch.einsum("bhnp,bhn->bhp", state, key[:, t])
        gain = (part["value"][:, t] - held) * part["beta"][:, t, :, None]
        state = state + torch.einsum("bhn,bhp->bhnp", key[:, t], gain)
        y = torch.einsum("bhnp,bhn->bhp", state, query[:, t]) / query.shape[-1] ** 0.5
        rows.append(y[:, None])
    return torch.cat(rows, dim=1), state


def run(function: Any, given: dict[str, Tensor], **more: Any) -> tuple[Tensor, Tensor]:
    return function(**given, output_final_state=True, use_qk_l2norm_in_kernel=True, **more)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tokens", [0, 1, 7, 64, 65])
def test_passage_is_the_rule(tokens: int, groups: int) -> None:
    given = inputs(tokens, groups)
    before = given["initial_state"].clone()
    for found, expected in zip(run(NUMBA, given), plain(given), strict=True):
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(given["initial_state"], before)
    del given["initial_state"]
    y, state = NUMBA(**given, use_qk_l2norm_in_kernel=True)
    assert state is None
    given["initial_state"] = torch.zeros_like(before)
    torch.testing.assert_close(y, plain(given)[0].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "head_dim"), [(1, 1), (4, 8), (13, 3), (64, 32)])
def test_any_size_is_computed(n: int, head_dim: int) -> None:
    given = inputs(9, 2, n, head_dim)
    for found, expected in zip(run(NUMBA, given), plain(given), strict=True):
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_half_precision_is_computed_in_float32() -> None:
    given = {name: part.bfloat16() for name, part in inputs(40).items()}
    exact = plain({name: part.float() for name, part in given.items()})
    y, state = run(NUMBA, given)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, run(NUMBA, {k: v.float() for k, v in given.items()})[0].bfloat16())
    torch.testing.assert_close(state, exact[1].float(), rtol=1e-5, atol=1e-5)


def test_keys_are_divided_by_their_norms_where_asked() -> None:
    given = inputs(12)
    given["key"] /= 4  # so that the state does not grow
    found = NUMBA(**given)[0]
    torch.testing.assert_close(
        found, torch_chunk_gated_delta_rule(**given)[0], rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(found, run(NUMBA, given)[0], rtol=1e-2)


def test_gradients_float64_and_packed_rows_are_left_to_torch() -> None:
    given = inputs(5)
    with torch.enable_grad():
        given["key"].requires_grad_()
        y, _ = run(NUMBA, given)
        assert torch.autograd.grad(y.sum(), given["key"])[0].abs().sum() > 0
    double = {name: part.detach().double() for name, part in given.items()}
    expected = run(torch_chunk_gated_delta_rule, double)
    for found, one in zip(run(NUMBA, double), expected, strict=True):
        assert torch.equal(found, one)
    with pytest.raises(ValueError, match="packed sequences"):
        run(NUMBA, inputs(5), cu_seqlens=torch.tensor([0, 2, 5]))


def test_nan_reaches_the_output() -> None:
    given = inputs(6)
    given["value"][1, 2, 3] = torch.nan
    y, _ = run(NUMBA, given)
    lost = torch.zeros(2, 6, 4, dtype=torch.bool)
    lost[1, 2:, 3] = True
    assert torch.equal(y.isnan().all(dim=3), lost)
    assert torch.equal(y.isnan().any(dim=3), lost)


def scans(given: dict[str, Tensor]) -> tuple[DeltaScan, DeltaScan]:
    """The same scan of the torch path, and of numba's."""
    order = [given[name] for name in ("query", "key", "value", "g", "beta")]
    rest = {"use_qk_l2norm_in_kernel": True}
    return (
        DeltaScan(*order, rest, torch_chunk_gated_delta_rule),
        DeltaScan(*order, rest, NUMBA, compiled=True),
    )


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 23])
def test_sizes_are_those_of_the_recurrence(tokens: int, groups: int) -> None:
    torch_scan, numba_scan = scans(inputs(tokens, groups))
    torch.testing.assert_close(numba_scan.sizes(), torch_scan.sizes(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["padded", "bos", "lead-in", "random"])
@pytest.mark.parametrize("choice", ["oracle", "causal"])
@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("window", [1, 2, 5, "sequence"])
def test_windows_are_those_of_torch(window: Any, access: Any, choice: Any, case: str) -> None:
    score = "random" if case == "random" else "impact"
    rule = Rule(score, 0.5, window, choice, site="state", access=access)
    torch_scan, numba_scan = scans(inputs(23))
    found = []
    valid = torch.arange(23) < torch.tensor([[23], [9 if case == "padded" else 23]])
    for scan in (torch_scan, numba_scan):
        action = StateWindows(rule, bos=case == "bos")
        if case == "padded":
            action.valid = valid
        if case == "lead-in":
            before = torch.rand(2, 2, 7, generator=torch.Generator().manual_seed(1))
            action.before = {SITE.key: before}
        result = action.scan(SITE, scan)
        y = result if isinstance(result, Tensor) else result.output()
        found.append(y[valid])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[1], torch_scan.output()[valid], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("access", ["read", "write"])
def test_ties_go_to_the_lowest_channel(access: Any) -> None:
    given = inputs(6)
    for name in ("query", "key"):
        given[name][:] = 1  # so that all channels are one
    for scan in scans(given):
        windows = StateWindows(Rule("impact", 0.5, "sequence", site="state", access=access))
        kept = (torch.arange(7) < 4).expand(2, 7)
        expected = scan.masked(kept if access == "write" else None, kept).output()
        result = windows.scan(SITE, scan)
        found = result if isinstance(result, Tensor) else result.output()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_score_that_is_no_number_is_refused() -> None:
    given = inputs(6)
    given["value"][0, 3] = torch.nan
    rule = Rule("impact", 0.5, 2, site="state", access="write")
    with pytest.raises(ModelError, match=r"layers\.0"):
        StateWindows(rule).scan(SITE, scans(given)[1])


def functions() -> list[Any]:
    return [getattr(modeling_qwen3_5, name) for name in (*GATED, CONV)]


def test_a_runner_gives_the_loss_of_torch_and_puts_everything_back(tiny_model: Any) -> None:
    model, ids, before = tiny_model("qwen3_5_text"), prompt(12), functions()
    for rule in (
        None,
        Rule("impact", 0.5, 4, "causal", site="state", access="write"),
        Rule("magnitude", 0.5, 1, site="state", access="read"),
    ):
        results = [
            Runner(model, find_sites(model), kernels=word, bos=5).block_nll(ids, rule, ids.flip(1))
            for word in ("torch", "numba")
        ]
        torch.testing.assert_close(*results, rtol=1e-5, atol=0)
    assert functions() == before


def test_what_runs_is_recorded(tiny_model: Any) -> None:
    model, ids = tiny_model("qwen3_5_text", **shape("qwen3_5_text", 2)), prompt(5)
    assert provider_for(model, "scan", Selection()) == "numba"
    assert provider_for(tiny_model("kimi_linear"), "scan", Selection()) == "torch"
    tokens = reference(model, ids, 4, None, None)
    for word, scan in (("torch", "torch"), ("auto", "numba")):
        decoded = gen.generate(model, ids, 4, kernels=word)
        assert decoded.mixers == {"scan": scan, "state": "torch"}
        assert torch.equal(decoded.tokens, tokens)
    with (
        mixer_kernels(model, Selection("torch")) as ran,
        pytest.raises(ConfigError, match=r"kernels\.scan: numba was chosen while .* with torch"),
        mixer_kernels(model, Selection(Kernels(scan="numba"))),
    ):
        pass
    with mixer_kernels(model, Selection()) as ran, mixer_kernels(model, Selection()) as inner:
        assert inner is ran


@pytest.mark.parametrize("word", ["auto", "numba"])
def test_where_numba_is_absent_torch_runs(tiny_model: Any, without_numba: None, word: Any) -> None:
    model, ids = tiny_model("qwen3_5_text"), prompt(5)
    runner = Runner(model, [], kernels=Kernels(scan=word))
    if word == "numba":
        with pytest.raises(ConfigError, match=r"kernels\.scan: .*pip install numba"):
            runner.block_nll(ids)
        return
    assert provider_for(model, "scan", runner.selection) == "torch"
    expected = Runner(model, [], kernels="torch").block_nll(ids)
    assert torch.equal(runner.block_nll(ids), expected)
