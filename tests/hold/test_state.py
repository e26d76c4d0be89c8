"""Rules on the state: what is not read, what is forgotten, and where the two meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mamba2 import modeling_mamba2

from keepset.errors import ConfigError, ModelError
from keepset.hold.memories import scanning
from keepset.hold.recurrence import Scan
from keepset.hold.state import StateMask, StateWindows, lead_in_scores
from keepset.kernels import naive, numba_scan
from keepset.kernels.dispatch import SCAN, standing_in
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule, n_kept
from keepset.sites.state import StateSite, find_state_sites
from state_models import shape

Factory = Callable[..., PreTrainedModel]


@pytest.fixture(autouse=True, params=["transformers", "numba"])
def scans(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every rule is held on transformers' own scan, and on the one that numba compiles."""
    functions = {SCAN: numba_scan.scan} if request.param == "numba" else {}
    with standing_in([modeling_mamba2], functions):
        yield


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
    """A windowed rule, written down as it is defined.

    Rows begin with `n_bos` tokens that are in no window. `before` (batch, groups, n) are the scores
    of the window before each row's first, of a causal rule.
    """

    def __init__(
        self,
        width: int,
        access: str,
        *,
        causal: bool = False,
        n_bos: int = 0,
        before: Tensor | None = None,
    ) -> None:
        self.width, self.access, self.causal = width, access, causal
        self.n_bos, self.before = n_bos, before
        self.last = torch.empty(0)

    def step(self, site: StateSite) -> Tensor:
        raise AssertionError

    def scan(self, site: StateSite, scan: Scan) -> Tensor:
        kept = n_kept(site.n_state, 0.5)
        step = naive.time_steps(scan.dt, scan.rest["dt_bias"], True, scan.rest["dt_limit"])
        tokens, heads = scan.x.shape[1:3]
        state = torch.zeros(scan.x.shape[0], heads, site.head_dim, site.n_state)
        everything = torch.ones_like(scan.C[:, 0], dtype=torch.bool)
        chosen = everything if self.before is None else top_mask(self.before, kept)
        starts = [*range(self.n_bos), *range(self.n_bos, tokens, self.width)]
        parts = []
        for start, stop in pairwise([*starts, tokens]):
            at = slice(start, stop)
            part = scan.x[:, at], step[:, at], scan.A, scan.B[:, at], scan.C[:, at]
            H = naive.scan(*part, initial_states=state)[1].unflatten(2, (site.n_groups, -1))
            energy = H.square().sum(dim=(3, 4)) * scan.C[:, at].square()
            own = top_mask(energy.mean(dim=1), kept)
            masks = [chosen if self.causal else own] * (stop - start)
            if start < self.n_bos:
                masks = [everything]
            elif self.causal and start == self.n_bos and self.before is None:
                masks = [everything] + [top_mask(energy[:, 0], kept)] * (stop - start - 1)
            for t, mask in zip(range(start, stop), masks, strict=True):
                parts.append(self.token(scan, step, state, t, mask))
                state = self.last
            if start >= self.n_bos:
                chosen = own
        return torch.cat(parts, dim=1)

    def token(self, scan: Scan, step: Tensor, state: Tensor, t: int, mask: Tensor) -> Tensor:
        """One token: what is not kept is not read; or it is zero before, and not written either."""
        written, read = scan.B[:, t : t + 1], scan.C[:, t : t + 1] * mask[:, None]
        if self.access == "write":
            state = (state.unflatten(1, (mask.shape[1], -1)) * mask[:, :, None, None]).flatten(1, 2)
            written = written * mask[:, None]
        x = scan.x[:, t : t + 1]
        part = x, step[:, t : t + 1], scan.A, written, read
        y, _, self.last = naive.scan(*part, initial_states=state)
        assert scan.D is not None
        return y + x * scan.D[:, None]


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


@pytest.mark.parametrize("n_bos", [0, 1])
@pytest.mark.parametrize("lead_in", [False, True])
@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize(("window", "width"), [(1, 1), (5, 5), ("sequence", 22)])
def test_causal_windows_are_what_they_are_defined_to_be(
    tiny_model: Factory, window: object, width: int, access: str, lead_in: bool, n_bos: int
) -> None:
    model = tiny_model("mamba2", **shape("mamba2", 2))
    action = StateWindows(rule(window, access, choice="causal"), bos=bool(n_bos))
    before = None
    if lead_in:
        sites = find_state_sites(model)
        before = torch.rand(len(IDS), 2, 8, generator=torch.Generator().manual_seed(1))
        action.before = {site.key: before for site in sites}
    found = logits(model, action)
    expected = logits(model, Plain(width, access, causal=True, n_bos=n_bos, before=before))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("access", ["read", "write"])
def test_a_bos_token_is_in_no_window(tiny_model: Factory, access: str) -> None:
    model = tiny_model("mamba2")
    found = logits(model, StateWindows(rule(5, access), bos=True))
    torch.testing.assert_close(
        found, logits(model, Plain(5, access, n_bos=1)), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(found[:, 0], logits(model)[:, 0])


def test_a_lead_in_is_scored_on_its_last_tokens(tiny_model: Factory) -> None:
    model = tiny_model("mamba2", num_hidden_layers=1)
    seen: list[Tensor] = []

    class Spy(Plain):
        def scan(self, site: StateSite, scan: Scan) -> Scan:  # type: ignore[override]
            H, C = plain(scan)
            seen.append(H.square().sum(dim=(3, 4)) * C.square())
            return scan

    logits(model, Spy(1, "read"))
    sites = find_state_sites(model)
    rules = [rule(width, "read", choice="causal") for width in (5, 1, 9)]
    scores = lead_in_scores(model, sites, rules, [5, 1, 9], IDS)
    for width, means in zip((5, 1, 9), scores, strict=True):
        torch.testing.assert_close(means["state.000"], seen[0][:, -width:].mean(dim=1))


def test_padding_does_not_choose(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")
    for access in ("read", "write"):
        action = StateWindows(rule(8, access))
        action.valid = torch.ones_like(IDS, dtype=torch.bool)
        action.valid[0, 13:] = False
        found = logits(model, action)[0, :13]
        with scanning(model, find_state_sites(model), StateWindows(rule(8, access))):
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
