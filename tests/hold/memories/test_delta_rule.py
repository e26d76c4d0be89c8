"""The gated delta rule that is scored, held and cut is the one that transformers runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_next import modeling_qwen3_next

from keepset.calibrate.channels import Scorer
from keepset.errors import ModelError
from keepset.hold.cut import prune_states
from keepset.hold.memories import scanning
from keepset.hold.memories.delta import DeltaScan
from keepset.hold.recurrence import Scan
from keepset.hold.state import StateMask, StateWindows
from keepset.kernels.dispatch import standing_in
from keepset.kernels.numba_delta import delta_rule
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule
from keepset.sites.memories.delta import GATED, key_and_query_rows
from keepset.sites.state import StateSite, find_state_sites
from state_models import DELTA, shape

Factory = Callable[..., PreTrainedModel]
IDS = torch.randint(4, 260, (3, 22), generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True, params=["transformers", "numba"])
def rules(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every rule is held on transformers' own functions, and on those that numba compiles."""
    with ExitStack() as stack:
        for module in (modeling_qwen3_5, modeling_qwen3_next) if request.param == "numba" else ():
            function = delta_rule(getattr(module, GATED[0]))
            stack.enter_context(standing_in([module], {GATED[0]: function}))
        yield


@pytest.fixture
def delta_model(tiny_model: Factory) -> Factory:
    """A tiny model whose states hold more than the last token."""

    def build(family: str, groups: int = 2, **more: Any) -> PreTrainedModel:
        model = tiny_model(family, **shape(family, groups), **more)
        for name, parameter in model.named_parameters():
            if name.endswith(("A_log", "dt_bias")):
                parameter.data = torch.linspace(-2.5, -0.5, parameter.numel()).view_as(parameter)
        return model

    return build


def logits(model: PreTrainedModel, action: Any = None, ids: Tensor = IDS, **more: Any) -> Tensor:
    with torch.no_grad():
        if action is None:
            return model(input_ids=ids, use_cache=False, **more).logits
        with scanning(model, find_state_sites(model), action):
            return model(input_ids=ids, use_cache=False, **more).logits


def states(scan: DeltaScan, write: Tensor | None = None, state: Tensor | None = None) -> Tensor:
    """Every state, written down as the rule is defined: (batch, tokens, heads, n, head_dim).

    `write` (batch, tokens, groups, n) multiplies what is written; and what it is zero for is zero.
    """
    key = scan.key.float() / (scan.key.float().square().sum(-1, keepdim=True) + 1e-6).sqrt()
    key = key if write is None else key * write
    key = key.repeat_interleave(scan.value.shape[2] // key.shape[2], dim=2)
    rows = []
    if state is None:
        state = torch.zeros(*key.shape[:1], *key.shape[2:], scan.value.shape[-1])
    for t in range(key.shape[1]):
        k, v, beta = key[:, t], scan.value[:, t], scan.beta[:, t, :, None]
        decay = scan.g[:, t].exp()
        state = state * (decay[..., None] if decay.ndim == 3 else decay[..., None, None])
        held = torch.einsum("bhnp,bhn->bhp", state, k)
        state = state + torch.einsum("bhn,bhp->bhnp", k, (v - held) * beta)
        rows.append(state)
    return torch.stack(rows, dim=1)


def reads(scan: DeltaScan) -> Tensor:
    """q / sqrt(n): (batch, tokens, groups, n)."""
    query = scan.query.float()
    return query / (query.square().sum(-1, keepdim=True) + 1e-6).sqrt() / query.shape[-1] ** 0.5


class Collect:
    """Computes y by the recurrence, and keeps every scan."""

    def __init__(self) -> None:
        self.scans: dict[str, DeltaScan] = {}

    def scan(self, site: StateSite, scan: Scan) -> Tensor:
        assert isinstance(scan, DeltaScan)
        self.scans[site.key] = scan
        recurrence = scan.recurrence()
        everything = torch.ones(recurrence.C.shape[0], site.n_groups, site.n_state)
        y = recurrence.read(recurrence.empty(), 0, recurrence.tokens, everything)
        return scan.with_skip(y)

    def step(self, site: StateSite) -> Tensor:
        raise AssertionError


@pytest.mark.parametrize("tokens", [1, 5, 64, 65])
@pytest.mark.parametrize("family", DELTA)
def test_recurrence_gives_transformers_logits(
    delta_model: Factory, family: str, tokens: int
) -> None:
    model = delta_model(family)
    ids = torch.randint(4, 260, (2, tokens), generator=torch.Generator().manual_seed(tokens))
    found = logits(model, Collect(), ids)
    torch.testing.assert_close(found, logits(model, None, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", DELTA)
def test_sites_are_read_from_the_mixer(delta_model: Factory, family: str) -> None:
    model = delta_model(family)
    (site,) = find_state_sites(model)
    assert (site.memory, site.layer, site.n_groups, site.n_state) == ("delta", 0, 2, 8)
    linears = key_and_query_rows(site)
    for which, place, (linear, rows) in zip("CB", ("query", "key"), linears, strict=True):
        assert torch.equal(site.projection(which).flatten(0, 1), linear.weight[rows])
        # Without its row, a channel has no query (or key) whatever the text is.
        linear.weight[rows[8 + 3]] = 0.0
        collect = Collect()
        logits(model, collect)
        values = getattr(collect.scans["state.000"], place)
        assert values[:, :, 1, 3].abs().max() == 0
        assert (values[:, :, 0, 3] != 0).any()


def test_recurrence_agrees_with_padding_in_front(delta_model: Factory) -> None:
    model = delta_model("qwen3_5_text")
    mask = torch.ones_like(IDS)
    mask[0, :6] = 0
    found = logits(model, Collect(), attention_mask=mask)
    torch.testing.assert_close(found, logits(model, attention_mask=mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_5_text", "kimi_linear"])
def test_sizes_are_those_of_the_plain_recurrence(delta_model: Factory, family: str) -> None:
    collect = Collect()
    logits(delta_model(family), collect)
    scan = collect.scans["state.000"]
    squares = states(scan).square().sum(dim=4).unflatten(2, (2, -1)).sum(dim=3)
    torch.testing.assert_close(scan.sizes(), squares, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", DELTA)
def test_static_rules_agree_with_cached_steps(delta_model: Factory, family: str) -> None:
    model = delta_model(family)
    kept = torch.rand(2, 8, generator=torch.Generator().manual_seed(0)).argsort(dim=1) < 5
    mask = StateMask({"state.000": kept})
    expected = logits(model, mask)
    assert not torch.allclose(expected, logits(model), rtol=1e-3, atol=1e-3)
    rows, past = [], None
    with torch.no_grad(), scanning(model, find_state_sites(model), mask):
        for part in (IDS[:, :9], *IDS[:, 9:].split(1, dim=1)):
            output = model(input_ids=part, past_key_values=past, use_cache=True)
            past = output.past_key_values
            rows.append(output.logits)
    torch.testing.assert_close(torch.cat(rows, dim=1), expected, rtol=1e-4, atol=2e-5)


def test_groups_may_keep_unlike_numbers(delta_model: Factory) -> None:
    """What one group keeps does not change another, whether or not the scan is narrower."""
    model = delta_model("qwen3_5_text")
    (site,) = find_state_sites(model)
    kept = torch.arange(8) < torch.tensor([[5], [2]])
    outputs: dict[int, Tensor] = {}

    class Watch(StateMask):
        def scan(self, site: StateSite, scan: Scan) -> Scan:
            both = scan.pruned(kept).output()
            for group, number in enumerate((5, 2)):
                alone = scan.pruned((torch.arange(8) < number).expand(2, 8)).output()
                outputs[group] = (both - alone)[:, :, 2 * group : 2 * group + 2].abs().max()
            return scan

    logits(model, Watch({}))
    assert site.n_heads == 4
    assert max(float(value) for value in outputs.values()) < 1e-6


def test_a_state_of_one_size_for_keys_and_values_is_not_cut(delta_model: Factory) -> None:
    model = delta_model("kimi_linear")
    with pytest.raises(ModelError, match=r"layers.0.*keys and values have one size"):
        prune_states(model, {"state.000": torch.arange(8)[None].expand(2, 8) < 4})


@pytest.mark.parametrize("family", ["qwen3_5_text", "kimi_linear"])
@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("width", [1, 5])
def test_windows_are_what_they_are_defined_to_be(
    delta_model: Factory, family: str, access: str, width: int
) -> None:
    model = delta_model(family)

    class Plain(Collect):
        def scan(self, site: StateSite, scan: Scan) -> Tensor:
            assert isinstance(scan, DeltaScan)
            C, tokens = reads(scan), scan.tokens
            heads = scan.value.shape[2] // 2
            state, parts = None, []
            for start, stop in pairwise([*range(0, tokens, width), tokens]):
                at = slice(start, stop)
                part = DeltaScan(
                    scan.query[:, at], scan.key[:, at], scan.value[:, at], scan.g[:, at],
                    scan.beta[:, at], scan.rest, scan.function,
                )  # fmt: skip
                H = states(part, state=state)
                size = H.square().sum(dim=4).unflatten(2, (2, -1)).sum(dim=3)
                best = top_mask((size * C[:, at].square()).mean(dim=1), 4)
                read = C[:, at] * best[:, None]
                if access == "write":
                    by_head = best.repeat_interleave(heads, dim=1)[..., None]
                    before = None if state is None else state * by_head
                    write = best[:, None].expand(-1, stop - start, -1, -1)
                    H = states(part, write, before)
                state = H[:, -1]
                query = read.repeat_interleave(heads, dim=2)
                parts.append(torch.einsum("bthnp,bthn->bthp", H, query))
            return torch.cat(parts, dim=1)

    rule = Rule("impact", 0.5, width, site="state", access=access)  # type: ignore[arg-type]
    found = logits(model, StateWindows(rule))
    torch.testing.assert_close(found, logits(model, Plain()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, logits(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("access", ["read", "write"])
def test_rules_on_windows_refuse_a_cache(delta_model: Factory, access: str) -> None:
    model = delta_model("qwen3_5_text")
    rule = Rule("magnitude", 0.5, 4, site="state", access=access)  # type: ignore[arg-type]
    with (
        scanning(model, find_state_sites(model), StateWindows(rule)),
        pytest.raises(ModelError, match="use_cache=False"),
    ):
        model(input_ids=IDS, use_cache=True)


def test_everything_is_put_back(delta_model: Factory) -> None:
    model = delta_model("qwen3_next")
    before = logits(model)

    class Broken(Collect):
        def scan(self, site: StateSite, scan: Scan) -> Tensor:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        logits(model, Broken())
    assert torch.equal(logits(model), before)


def test_energy_is_measured_and_ghost_estimates_it(delta_model: Factory) -> None:
    """Under a delta rule what a channel holds depends on the others, so H C is not its effect."""
    model = delta_model("qwen3_5_text")
    sites, ids = find_state_sites(model), IDS[:, :20]
    (sums,) = Scorer(model, sites, ids, 1000).one_shot(measured=True).values()
    collect = Collect()
    logits(model, collect, ids)
    scan = collect.scans["state.000"]
    dense = torch.einsum("bthnp,bthn->bthp", states(scan), reads(scan).repeat_interleave(2, dim=2))
    for group, channel in ((0, 0), (1, 5)):
        kept = torch.ones(1, 1, 2, 8)
        kept[:, :, group, channel] = 0
        read = (reads(scan) * kept).repeat_interleave(2, dim=2)
        without = torch.einsum("bthnp,bthn->bthp", states(scan, kept), read)
        change = (without - dense)[:, :, 2 * group : 2 * group + 2].double().square().mean()
        assert float(sums.energy[group, channel]) == pytest.approx(float(change), rel=1e-4)
    product = scan.sizes() * reads(scan).square()
    expected = product.double().mean(dim=(0, 1)) / (2 * 6)
    torch.testing.assert_close(sums.ghost, expected, rtol=1e-5, atol=0)
    assert not torch.allclose(sums.ghost, sums.energy, rtol=0.05)
    assert Scorer(model, sites, ids, 1000).one_shot()["state.000"].change is None


def test_left_out_documents_are_measured_too(delta_model: Factory) -> None:
    model = delta_model("qwen3_5_text")
    sites = find_state_sites(model)
    documents = torch.tensor([0, 1, 2])
    (sums,) = Scorer(model, sites, IDS, 1000, documents=documents).one_shot(measured=True).values()
    (alone,) = Scorer(model, sites, IDS[1:], 1000).one_shot(measured=True).values()
    assert len(sums.left_out) == 3
    torch.testing.assert_close(sums.left_out[0].energy, alone.energy, rtol=1e-5, atol=0)


def test_taylor_is_the_derivative_by_what_is_read(delta_model: Factory) -> None:
    model = delta_model("qwen3_5_text")
    slopes = Scorer(model, find_state_sites(model), IDS, 1000).gradients()["state.000"]

    def loss(scale: float) -> float:
        gate = torch.ones(2, 8)
        gate[1, 2] = scale

        class Gate(StateMask):
            def scan(self, site: StateSite, scan: Scan) -> Scan:
                return scan.masked(read=gate)

        predicted = logits(model, Gate({}))[:, :-1].flatten(0, 1)
        return float(F.cross_entropy(predicted.double(), IDS[:, 1:].flatten()))

    assert float(slopes[1, 2]) == pytest.approx(abs(loss(1.05) - loss(0.95)) * 10, rel=1e-2)
