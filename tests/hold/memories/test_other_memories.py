"""Mamba-1, lightning attention and RG-LRU: rules and scores against their plain recurrences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from keepset.calibrate.channels import Scorer
from keepset.errors import ModelError
from keepset.hold.memories import scanning
from keepset.hold.recurrence import Scan
from keepset.hold.state import StateMask, StateWindows, lead_in_scores
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule, n_kept
from keepset.sites.memories import code_of
from keepset.sites.memories.selective import FUSED
from keepset.sites.state import StateSite, find_state_sites
from state_models import SELECTIVE, UNCUT, shape

Factory = Callable[..., PreTrainedModel]
CASES = [*SELECTIVE.items(), *UNCUT.items()]
NAMES = [name for name, _ in CASES]
IDS = torch.randint(4, 260, (3, 21), generator=torch.Generator().manual_seed(2))


def logits(model: PreTrainedModel, action: object = None, ids: Tensor = IDS, **more: Any) -> Tensor:
    with torch.no_grad():
        if action is None:
            return model(input_ids=ids, use_cache=False, **more).logits
        with scanning(model, find_state_sites(model), action):  # type: ignore[arg-type]
            return model(input_ids=ids, use_cache=False, **more).logits


def decoded(model: PreTrainedModel, action: StateMask) -> Tensor:
    """Logits of a prefill of nine tokens and single cached steps."""
    name = "cache_params" if model.config.model_type.endswith("mamba") else "past_key_values"
    # RecurrentGemma keeps its states in its modules, and gives no cache back.
    own = model.config.model_type == "recurrent_gemma"
    past = DynamicCache(config=model.config) if own else None
    rows = []
    with scanning(model, find_state_sites(model), action), torch.no_grad():
        for part in (IDS[:, :9], *IDS[:, 9:].split(1, dim=1)):
            more: dict[str, Any] = {} if past is None else {name: past}
            found = model(input_ids=part, use_cache=True, **more)
            past = past if own else getattr(found, name)
            rows.append(found.logits)
    return torch.cat(rows, dim=1)


class Identity(StateMask):
    """Sees every scan and changes nothing."""

    def __init__(self) -> None:
        super().__init__({})
        self.seen: list[str] = []

    def scan(self, site: StateSite, scan: Scan) -> Scan | Tensor:
        self.seen.append(site.key)
        return scan

    def step(self, site: StateSite) -> Tensor:
        return torch.ones(site.n_groups, site.n_state, dtype=torch.bool)


def plain(site: StateSite, scan: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What a mixer's recurrence is, from what transformers gave: decay, written, read.

    Each (batch, tokens, heads, head_dim, n_state): H = decay H + written, and y = H read, summed
    over channels where there is more than one in an entry of y.
    """
    if site.memory == "lightning":
        per_head = (-site.mixer.slope_rate).exp().view(1, 1, -1, 1, 1)
        return per_head, scan.v[..., None] * scan.B[..., None, :], scan.C[..., None, :]
    if site.memory == "rglru":
        decay = scan.inputs["recurrent_gate"] * ~scan.inputs["reset"]
        parts = (decay, scan.B[:, :, 0], scan.C[:, :, 0])
        decay, written, read = (part[:, :, None, None] for part in parts)
        return decay, written, read
    groups = []
    for call in scan.calls:
        step = F.softplus(call.dt + call.rest["delta_bias"][:, None]).transpose(1, 2)
        decay = (step[..., None] * call.A).exp()
        B, C = (values.transpose(1, 2)[:, :, None] for values in (call.B, call.C))
        written = (step * call.x.transpose(1, 2))[..., None] * B
        groups.append((decay, written, C.expand_as(decay)))
    decay, written, read = (
        torch.cat(parts, dim=2)[:, :, :, None] for parts in zip(*groups, strict=True)
    )
    return decay, written, read


class Plain(Identity):
    """A windowed rule, written down as it is defined; `causal` ones start dense on one token."""

    def __init__(self, width: int, access: str, *, causal: bool, score: str) -> None:
        super().__init__()
        self.width, self.access, self.causal, self.score = width, access, causal, score

    def scan(self, site: StateSite, scan: Scan) -> Tensor:
        decay, written, read = plain(site, scan)
        decay, read = (values.expand_as(written) for values in (decay, read))
        groups, kept = (site.n_groups, -1), n_kept(site.n_state, 0.5)
        state = torch.zeros_like(written[:, 0])
        rows = []
        chosen = torch.empty(0)
        for start in range(0, IDS.shape[1], self.width):
            stop = min(start + self.width, IDS.shape[1])
            trial, energies = state, []
            for t in range(start, stop):
                trial = decay[:, t] * trial + written[:, t]
                size = trial.square().unflatten(1, groups).sum(dim=(2, 3))
                one = read[:, t].unflatten(1, groups)[:, :, 0, 0].square()
                energies.append(size * one if self.score == "impact" else size)
            by_own = top_mask(torch.stack(energies).mean(dim=0), kept)
            for t in range(start, stop):
                if not self.causal:
                    mask = by_own
                elif start:
                    mask = chosen
                else:
                    mask = top_mask(energies[0], kept) if t else torch.ones_like(by_own)
                heads = mask.repeat_interleave(site.n_heads // site.n_groups, dim=1)[:, :, None]
                if self.access == "write":
                    state = decay[:, t] * (state * heads) + written[:, t] * heads
                else:
                    state = decay[:, t] * state + written[:, t]
                out = state * read[:, t] * heads
                rows.append(out[:, :, 0] if site.memory == "rglru" else out.sum(dim=3))
            chosen = by_own
        y = torch.stack(rows, dim=1)
        if site.memory == "selective":
            D = torch.cat([call.D for call in scan.calls])  # type: ignore[attr-defined]
            x = torch.cat([call.x for call in scan.calls], dim=1)  # type: ignore[attr-defined]
            y = y + (x.transpose(1, 2) * D)[..., None]
        return y


@pytest.mark.parametrize("score", ["impact", "magnitude"])
@pytest.mark.parametrize("choice", ["oracle", "causal"])
@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("family", NAMES)
def test_windows_are_what_they_are_defined_to_be(
    tiny_model: Factory, family: str, access: str, choice: str, score: str
) -> None:
    model = tiny_model(family, **shape(family, SELECTIVE.get(family, 1)))
    rule = Rule(score, 0.5, 8, choice, site="state", access=access)
    found = logits(model, StateWindows(rule))
    expected = logits(model, Plain(8, access, causal=choice == "causal", score=score))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert not torch.allclose(found, logits(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", NAMES)
def test_what_is_left_alone_is_dense_bit_for_bit(tiny_model: Factory, family: str) -> None:
    model, identity = tiny_model(family), Identity()
    assert torch.equal(logits(model, identity), logits(model))
    assert identity.seen == [site.key for site in find_state_sites(model)]
    nothing = Rule("impact", 0.0, 1, site="state", access="write")
    assert torch.equal(logits(model, StateWindows(nothing)), logits(model))


@pytest.mark.parametrize("family", NAMES)
def test_cached_steps_go_on_with_the_mask_of_the_prefill(tiny_model: Factory, family: str) -> None:
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(3)
    masks = {}
    for site in find_state_sites(model):
        order = torch.rand(site.n_groups, site.n_state, generator=generator).argsort(dim=1)
        masks[site.key] = order < 3
    found = decoded(model, StateMask(masks))
    torch.testing.assert_close(found, logits(model, StateMask(masks)), rtol=1e-4, atol=2e-5)
    assert not torch.allclose(found, logits(model), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(decoded(model, Identity()), logits(model), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["falcon_mamba", "zamba", "minimax"])
def test_a_masked_row_with_padding_in_front_is_the_row_alone(
    tiny_model: Factory, family: str
) -> None:
    model = tiny_model(family)
    sites = find_state_sites(model)
    masks = {
        site.key: (torch.arange(site.n_state) % 3 > 0).expand(site.n_groups, -1) for site in sites
    }
    ids = torch.cat([torch.zeros(3, 5, dtype=torch.int64), IDS], dim=1)
    valid = (torch.arange(26) >= 5).long().expand(3, -1)
    padded = logits(model, StateMask(masks), ids, attention_mask=valid)[:, 5:]
    torch.testing.assert_close(padded, logits(model, StateMask(masks)), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("family", "groups"), CASES)
def test_energy_is_the_measured_change_of_y(tiny_model: Factory, family: str, groups: int) -> None:
    model = tiny_model(family)
    sites = find_state_sites(model)
    sums = Scorer(model, sites, IDS, 1000).one_shot()

    class Without(Identity):
        """Runs one site without some channels, and keeps its y."""

        def __init__(self, at: StateSite, kept: Tensor) -> None:
            super().__init__()
            self.at, self.kept, self.y = at, kept, torch.empty(0)

        def scan(self, site: StateSite, scan: Scan) -> Scan | Tensor:
            if site.key != self.at.key:
                return scan
            self.y = scan.masked(self.kept, self.kept).output().double()
            return scan

    def output(site: StateSite, kept: Tensor) -> Tensor:
        action = Without(site, kept)
        logits(model, action)
        return action.y

    for site in sites[-2:]:
        dense = output(site, torch.ones(groups, site.n_state))
        for channel in (0, site.n_state - 1):
            kept = torch.ones(groups, site.n_state)
            kept[-1, channel] = 0
            change = (output(site, kept) - dense).square()
            rows = IDS.numel() * site.n_heads // groups * site.head_dim
            found = float(sums[site.key].energy[-1, channel])
            assert found == pytest.approx(float(change.sum()) / rows, rel=1e-3)
            others = change.flatten(2)[..., : site.n_heads // groups * (groups - 1)]
            assert float(others.sum()) < 1e-9


@pytest.mark.parametrize("family", ["mamba", "zamba", "minimax"])
def test_what_is_not_read_is_a_zeroed_row_of_the_weights(tiny_model: Factory, family: str) -> None:
    model = tiny_model(family)
    masks = {}
    for site in find_state_sites(model):
        masks[site.key] = torch.ones(site.n_groups, site.n_state, dtype=torch.bool)
        masks[site.key][-1, 3] = False
    found = logits(model, StateMask(masks))
    for site in find_state_sites(model):
        site.projection("C")[-1, 3] = 0
    torch.testing.assert_close(logits(model), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["falcon_mamba", "jamba"])
def test_size_of_the_weights_counts_the_norm_behind_them(tiny_model: Factory, family: str) -> None:
    site = find_state_sites(tiny_model(family))[0]
    mixer: Any = site.mixer
    rows = mixer.x_proj.weight[4 + 8 :]  # behind dt and B
    expected = rows * mixer.c_layernorm.weight[:, None]
    assert torch.equal(site.projection("C")[0], expected)


@pytest.mark.parametrize("family", NAMES)
def test_whole_passages_are_asked_for_and_everything_is_put_back(
    tiny_model: Factory, family: str
) -> None:
    model = tiny_model(family)
    dense, sites = logits(model), find_state_sites(model)
    rule = Rule("impact", 0.5, 8, site="state", access="write")
    with (
        pytest.raises(ModelError, match=r"layers\.\d.*whole passages"),
        scanning(model, sites, StateWindows(rule)),
        torch.no_grad(),
    ):
        model(input_ids=IDS, use_cache=True)
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_pre_hooks, *module._forward_hooks)
    ]
    assert not hooks
    assert torch.equal(logits(model), dense)


def test_a_fused_kernel_does_not_pass_the_rule_by(
    tiny_model: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("mamba")
    sites = find_state_sites(model)
    rule = StateWindows(Rule("impact", 0.5, 4, site="state", access="write"))
    expected = logits(model, rule)

    def fused(*_: Any, **__: Any) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(code_of(sites[0].mixer), FUSED, fused)
    model.train()
    assert torch.equal(logits(model, rule), expected)


def test_a_lead_in_is_scored_on_its_last_tokens(tiny_model: Factory) -> None:
    model = tiny_model("zamba")
    sites = find_state_sites(model)
    rule = Rule("impact", 0.5, 4, "causal", site="state", access="read")
    (scores,) = lead_in_scores(model, sites, [rule], [4], IDS)
    sums = Scorer(model, sites, IDS[:1], 1000).one_shot()
    assert scores["state.001"].shape == (3, 2, 8)
    seen: dict[str, Tensor] = {}

    class Watch(Identity):
        def scan(self, site: StateSite, scan: Scan) -> Scan:
            decay, written, read = plain(site, scan)
            state, energy = torch.zeros_like(written[:, 0]), []
            for t in range(IDS.shape[1]):
                state = decay[:, t] * state + written[:, t]
                product = (state * read[:, t]).square()
                energy.append(product.unflatten(1, (2, -1)).sum(dim=(2, 3)))
            seen[site.key] = torch.stack(energy, dim=1)
            return scan

    logits(model, Watch())
    for key, energy in seen.items():
        torch.testing.assert_close(scores[key], energy[:, -4:].mean(dim=1), rtol=1e-4, atol=1e-9)
        first = energy[0].double().mean(dim=0) / 32
        torch.testing.assert_close(sums[key].energy, first, rtol=1e-4, atol=1e-12)
