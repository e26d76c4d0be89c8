"""Rules on the state: what is not read, what is forgotten, and where the two meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from keepset.errors import ConfigError, ModelError
from keepset.hold.recurrence import Scan
from keepset.hold.state import StateMask, StateWindows, scanning
from keepset.kernels import naive
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule, n_kept
from keepset.sites.state import StateSite, find_state_sites
from state_models import shape

Factory = Callable[..., PreTrainedModel]
IDS = torch.randint(4, 260, (3, 22), generator=torch.Generator().manual_seed(2))


def rule(window: object, access: str, **more: object) -> Rule:
    return Rule("impact", 0.5, window, site="state", access=access, **more)  # type: ignore[arg-type]


def logits(model: PreTrainedModel, action: object = None) -> Tensor:
    with torch.no_grad():
        if action is None:
            return model(input_ids=IDS, use_cache=False).logits
        with scanning(model, find_state_sites(model), action):  # type: ignore[arg-type]
            return model(input_ids=IDS, use_cache=False).logits


def plain(scan: Scan) -> tuple[Tensor, Tensor]:
    """Every state and C of one scan, by the plain recurrence: (b, t, g, r, p, n), (b, t, g, n)."""
    step = naive.time_steps(scan.dt, scan.rest["dt_bias"], True, scan.rest["dt_limit"])
    states = naive.scan(scan.x, step, scan.A, scan.B, scan.C)[1]
    return states.unflatten(2, (scan.C.shape[2], -1)), scan.C


class Plain:
    """A windowed rule, written down as it is defined; oracle choice."""

    def __init__(self, width: int, access: str, sparsity: float = 0.5) -> None:
        self.width, self.access, self.sparsity = width, access, sparsity

    def step(self, site: StateSite, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError

    def scan(self, site: StateSite, scan: Scan) -> Tensor:
        kept = n_kept(site.n_state, self.sparsity)
        step = naive.time_steps(scan.dt, scan.rest["dt_bias"], True, scan.rest["dt_limit"])
        tokens, heads = scan.x.shape[1:3]
        state = torch.zeros(scan.x.shape[0], heads, site.head_dim, site.n_state)
        parts = []
        for start in range(0, tokens, self.width):
            at = slice(start, min(start + self.width, tokens))
            part = scan.x[:, at], step[:, at], scan.A, scan.B[:, at], scan.C[:, at]
            _, states, last = naive.scan(*part, initial_states=state)
            H = states.unflatten(2, (site.n_groups, -1))
            C = scan.C[:, at]
            energy = (H.square().sum(dim=(3, 4)) * C.square()).mean(dim=1)
            mask = top_mask(energy, kept)
            y = (H * (C * mask[:, None])[:, :, :, None, None]).sum(dim=-1).flatten(2, 3)
            parts.append(y + scan.x[:, at] * scan.D[:, None])
            state = last
            if self.access == "write":
                state = (last.unflatten(1, (site.n_groups, -1)) * mask[:, :, None, None]).flatten(
                    1, 2
                )
        return torch.cat(parts, dim=1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize(("window", "width"), [(1, 1), (5, 5), (8, 8), ("sequence", 22)])
def test_windows_are_what_they_are_defined_to_be(
    tiny_model: Factory, window: object, width: int, access: str, groups: int
) -> None:
    model = tiny_model("mamba2", **shape("mamba2", groups))
    found = logits(model, StateWindows(rule(window, access)))
    expected = logits(model, Plain(width, access))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, logits(model), rtol=1e-3, atol=1e-3)


def test_over_the_whole_passage_not_reading_is_forgetting(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")
    read = logits(model, StateWindows(rule("sequence", "read")))
    write = logits(model, StateWindows(rule("sequence", "write")))
    torch.testing.assert_close(read, write, rtol=1e-5, atol=1e-5)


def test_sparsity_0_is_dense_bit_for_bit(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")
    nothing = Rule("impact", 0.0, 1, site="state", access="write")
    assert torch.equal(logits(model, StateWindows(nothing)), logits(model))


def test_causal_sets_are_those_of_the_window_before(tiny_model: Factory) -> None:
    model = tiny_model("mamba2", num_hidden_layers=1)
    seen: list[Tensor] = []

    class Spy(StateWindows):
        def scan(self, site: StateSite, scan: Scan) -> Scan | Tensor:
            result = super().scan(site, scan)
            assert isinstance(result, Scan)
            seen.append((result.C != 0)[:, ::5])
            seen.append(scan.C)
            H, C = plain(scan)
            seen.append(H.square().sum(dim=(3, 4)) * C.square())
            return result

    lead = {"state.000": torch.arange(8.0)[None]}
    logits(model, Spy(rule(5, "read", choice="causal"), lead_in=lead))
    masks, _, energy = seen
    windows = [energy[:, start : start + 5].mean(dim=1) for start in range(0, 22, 5)]
    for at in range(1, 5):
        assert torch.equal(masks[:, at], top_mask(windows[at - 1], 4))
    # The window before a row's first is the last of the row above; before all stands the lead-in.
    assert masks[0, 0].flatten().tolist() == [False] * 4 + [True] * 4
    assert torch.equal(masks[1:, 0], top_mask(windows[-1][:-1], 4))


@pytest.mark.parametrize("access", ["read", "write"])
def test_causal_passages_start_whole(tiny_model: Factory, access: str) -> None:
    model = tiny_model("mamba2")
    whole = rule("sequence", access, choice="causal")
    found = logits(model, StateWindows(whole, stream=False))
    torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="lead-in"):
        logits(model, StateWindows(whole))


def test_padding_does_not_choose(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")
    for access in ("read", "write"):
        action = StateWindows(rule(8, access), stream=False)
        action.valid = torch.ones_like(IDS, dtype=torch.bool)
        action.valid[0, 13:] = False
        found = logits(model, action)[0, :13]
        with scanning(model, find_state_sites(model), StateWindows(rule(8, access), stream=False)):
            alone = model(input_ids=IDS[:1, :13], use_cache=False).logits[0]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_random_sets_are_seeded(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")

    def run(seed: int) -> Tensor:
        at = Rule("random", 0.5, 4, seed=seed, site="state", access="read")
        return logits(model, StateWindows(at))

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_a_mask_is_a_zeroed_row_of_the_weights(tiny_model: Factory) -> None:
    model = tiny_model("mamba2", **shape("mamba2", 2))
    kept = torch.ones(2, 8, dtype=torch.bool)
    kept[0, 3] = kept[1, 6] = False
    masks = {site.key: kept for site in find_state_sites(model)}
    found = logits(model, StateMask(masks))
    for name, parameter in model.named_parameters():
        # C is the last but dt of the projection, and passes the convolution channel by channel.
        if name.endswith("conv1d.weight") or name.endswith("conv1d.bias"):
            rows = 64 + 16 + (~kept).flatten().nonzero()[:, 0]
            parameter.data[rows] = 0
    torch.testing.assert_close(found, logits(model), rtol=1e-5, atol=1e-5)


def test_impossible_rules_are_refused(tiny_model: Factory) -> None:
    with pytest.raises(ConfigError, match="static"):
        StateWindows(rule("corpus", "read"))
    with pytest.raises(ConfigError, match="read or write"):
        StateWindows(rule(4, "both"))
    with pytest.raises(ConfigError, match="ghost"):
        StateWindows(Rule("ghost", 0.5, 4, site="state", access="read"))
    model = tiny_model("mamba2")
    with (
        pytest.raises(ModelError, match="whole passages"),
        scanning(model, find_state_sites(model), StateWindows(rule(4, "write"))),
    ):
        model(input_ids=IDS, use_cache=True)
