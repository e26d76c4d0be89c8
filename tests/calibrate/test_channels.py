"""Scores of state channels: GHOST's identity, the order of layers, the shares they keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from keepset.calibrate.channels import Scorer
from keepset.errors import ModelError
from keepset.hold.memories import scanning
from keepset.hold.recurrence import Scan
from keepset.hold.state import StateMask
from keepset.rules.rule import n_kept
from keepset.rules.scores import CHANNEL_SCORES, ghost
from keepset.sites.state import StateSite, find_state_sites
from state_models import shape

Factory = Callable[..., PreTrainedModel]
separate = CHANNEL_SCORES["ghost-separate"].static
BLOCKS = torch.randint(4, 260, (4, 19), generator=torch.Generator().manual_seed(5))


class Outputs:
    """Keeps y, the scan's output before the gated norm, with one channel left out."""

    def __init__(self, site: StateSite, kept: Tensor) -> None:
        self.site, self.kept = site, kept
        self.y = torch.empty(0)

    def scan(self, site: StateSite, scan: Scan) -> Scan | Tensor:
        if site is not self.site:
            return scan
        y = scan.masked(self.kept, self.kept).run()
        self.y = y.double()
        return y

    def step(self, site: StateSite) -> Tensor:
        return torch.ones(site.n_groups, site.n_state, dtype=torch.bool)


@pytest.mark.parametrize("groups", [1, 4])
def test_ghost_is_the_measured_change_of_y(tiny_model: Factory, groups: int) -> None:
    model = tiny_model("mamba2", **shape("mamba2", groups))
    sites = find_state_sites(model)
    sums = Scorer(model, sites, BLOCKS, 1000).one_shot()

    def outputs(site: StateSite, kept: Tensor) -> Tensor:
        action = Outputs(site, kept)
        with scanning(model, sites, action), torch.no_grad():
            model(input_ids=BLOCKS, use_cache=False)
        return action.y.unflatten(2, (groups, -1))

    for site in sites:
        dense = outputs(site, torch.ones(groups, site.n_state))
        for group in range(groups):
            for channel in (0, 3, 7):
                kept = torch.ones(groups, site.n_state)
                kept[group, channel] = 0
                change = (outputs(site, kept) - dense).square()
                measured = change[:, :, group].mean()
                squared = ghost(sums[site.key])[group, channel] ** 2
                assert float(squared) == pytest.approx(float(measured), rel=1e-4)
                others = [g for g in range(groups) if g != group]
                assert float(change[:, :, others].sum()) < 1e-9


def test_factors_are_the_means_of_their_squares(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")
    sums = Scorer(model, find_state_sites(model), BLOCKS, 1000).one_shot()
    for site in sums.values():
        # Cauchy-Schwarz does not bind a product of means; equality would be no coincidence.
        assert not torch.allclose(separate(site), ghost(site), rtol=1e-3)
        torch.testing.assert_close(
            separate(site), (site.controllability * site.observability).sqrt()
        )


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_in_order_scores_layers_as_they_will_be_seen(tiny_model: Factory, sparsity: float) -> None:
    model = tiny_model("mamba2", num_hidden_layers=3)
    sites = find_state_sites(model)
    found = Scorer(model, sites, BLOCKS, 1000).in_order(sparsity, ghost)
    batches = Scorer(model, sites, BLOCKS, 19).in_order(sparsity, ghost)
    held: dict[str, Tensor] = {}
    for site in sites:
        # Independently: score the whole model with the layers before this one masked.
        class Held(StateMask):
            def scan(self, at: StateSite, scan: Scan) -> Scan:
                return super().scan(at, scan) if at.key in held else scan

        with scanning(model, sites, Held(held)):
            expected = _energy(model, sites, site)
        torch.testing.assert_close(found[site.key].energy, expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(batches[site.key].energy, expected, rtol=1e-5, atol=0)
        score = expected.sqrt()[0]
        kept = torch.zeros(1, site.n_state, dtype=torch.bool)
        kept[0, score.argsort(descending=True)[: n_kept(site.n_state, sparsity)]] = True
        held[site.key] = kept
    one_shot = Scorer(model, sites, BLOCKS, 1000).one_shot()
    assert torch.equal(one_shot["state.000"].energy, found["state.000"].energy)
    assert not torch.allclose(
        one_shot["state.002"].energy, found["state.002"].energy, rtol=1e-4, atol=0
    )


def _energy(model: PreTrainedModel, sites: list[StateSite], site: StateSite) -> Tensor:
    return Scorer(model, [site], BLOCKS, 1000).one_shot()[site.key].energy


def test_taylor_is_the_derivative_by_a_gate(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")
    sites = find_state_sites(model)
    found = Scorer(model, sites, BLOCKS, 40).gradients()

    def loss(scale: float) -> float:
        kept = torch.ones(1, 8, dtype=torch.float64)
        kept[0, 2] = scale

        class Gate(StateMask):
            def scan(self, site: StateSite, scan: Scan) -> Scan:
                return scan if site.layer != 1 else scan.masked(read=kept)

        with scanning(model, sites, Gate({})), torch.no_grad():
            logits = model(input_ids=BLOCKS, use_cache=False).logits[:, :-1]
        return float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), BLOCKS[:, 1:].flatten())
        )

    slope = (loss(2.0) - loss(0.0)) / 2
    assert float(found["state.001"][0, 2]) == pytest.approx(abs(slope), rel=5e-3)


def test_gradients_are_taken_on_few_tokens_at_a_time(tiny_model: Factory) -> None:
    """They keep every layer's activations; scores without gradients may take all text at once."""
    model = tiny_model("mamba2")
    sites = find_state_sites(model)
    seen: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _module, _args, named: seen.append(named["input_ids"].numel()), with_kwargs=True
    )
    small = Scorer(model, sites, BLOCKS, 1000, gradient_tokens=38).gradients()
    handle.remove()
    assert seen == [38, 38]
    for key, whole in Scorer(model, sites, BLOCKS, 1000).gradients().items():
        torch.testing.assert_close(small[key], whole, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("batch_tokens", [19, 1000])
def test_groups_of_documents_are_left_out(tiny_model: Factory, batch_tokens: int) -> None:
    model = tiny_model("mamba2")
    sites = find_state_sites(model)
    documents = torch.tensor([0, 1, 2, 1])
    found = Scorer(model, sites, BLOCKS, batch_tokens, documents=documents).one_shot(gradients=True)
    for group in range(3):
        rest = BLOCKS[documents != group]
        alone = Scorer(model, sites, rest, 1000).one_shot(gradients=True)
        for key, sums in found.items():
            assert len(sums.left_out) == 3
            for name in ("energy", "controllability", "observability", "taylor"):
                torch.testing.assert_close(
                    getattr(sums.left_out[group], name), getattr(alone[key], name),
                    rtol=1e-4, atol=1e-12,
                )  # fmt: skip


def test_one_document_leaves_nothing_out(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")
    found = Scorer(model, find_state_sites(model), BLOCKS, 1000).one_shot()
    assert all(sums.left_out == [] for sums in found.values())


def test_a_bos_is_read_and_in_no_sum(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")
    sites = find_state_sites(model)
    found = Scorer(model, sites, BLOCKS, 1000, bos=1).one_shot(gradients=True)
    before = torch.cat([torch.full((4, 1), 1), BLOCKS], dim=1)
    seen: dict[str, Tensor] = {}

    class Watch(StateMask):
        def scan(self, site: StateSite, scan: Scan) -> Scan:
            recurrence = scan.recurrence()
            sizes = recurrence.sizes(recurrence.empty(), 0, recurrence.tokens)
            heads = site.n_heads // site.n_groups * site.head_dim
            product = (sizes * recurrence.C.square())[:, 1:] / heads
            seen[site.key] = product.double().mean(dim=(0, 1))
            return scan

    with scanning(model, sites, Watch({})), torch.no_grad():
        model(input_ids=before, use_cache=False)
    bare = Scorer(model, sites, BLOCKS, 1000).gradients()
    for key, sums in found.items():
        torch.testing.assert_close(sums.energy, seen[key], rtol=1e-5, atol=0)
        assert sums.taylor is not None
        assert not torch.allclose(sums.taylor, bare[key], rtol=1e-3)


def test_taylor_with_a_bos_is_the_derivative_at_the_text_alone(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")
    sites = find_state_sites(model)
    found = Scorer(model, sites, BLOCKS, 1000, bos=1).gradients()
    ids = torch.cat([torch.full((4, 1), 1), BLOCKS], dim=1)

    def loss(scale: float) -> float:
        gate = torch.ones(4, ids.shape[1], 1, 8, dtype=torch.float64)
        gate[:, 1:, 0, 2] = scale

        class Gate(StateMask):
            def scan(self, site: StateSite, scan: Scan) -> Scan:
                return scan if site.layer != 1 else scan.masked(read=gate)

        with scanning(model, sites, Gate({})), torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), BLOCKS.flatten()))

    slope = (loss(2.0) - loss(0.0)) / 2
    assert float(found["state.001"][0, 2]) == pytest.approx(abs(slope), rel=5e-3)


@pytest.mark.parametrize("weight", ["in_proj", "lm_head"])
def test_what_is_not_finite_is_refused(tiny_model: Factory, weight: str) -> None:
    """A NaN in the state, or only in the gradient that comes back to it."""
    model = tiny_model("mamba2", tie_word_embeddings=False)
    sites = find_state_sites(model)
    with torch.no_grad():
        name = next(name for name, _ in model.named_parameters() if weight in name)
        model.get_parameter(name)[-1, 0] = float("nan")
    scorer = Scorer(model, sites, BLOCKS, 1000)
    with pytest.raises(ModelError, match="NaN or infinity in the"):
        scorer.one_shot(gradients=True)


def test_magnitude_is_the_product_of_the_projections_norms(tiny_model: Factory) -> None:
    model = tiny_model("mamba2", **shape("mamba2", 2))
    site = find_state_sites(model)[0]
    weight = model.state_dict()["backbone.layers.0.mixer.in_proj.weight"]
    inner = 64
    rows = weight[2 * inner : 2 * inner + 16], weight[2 * inner + 16 : 2 * inner + 32]
    expected = (rows[0].norm(dim=1) * rows[1].norm(dim=1)).view(2, 8)
    found = Scorer(model, [site], BLOCKS, 1000).one_shot()[site.key].magnitude
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("layer", ["mixer.out_proj", "mixer.norm"])
def test_what_is_broken_behind_the_last_state_is_refused(tiny_model: Factory, layer: str) -> None:
    model = tiny_model("mamba2")
    model.backbone.layers[-1].get_submodule(layer).weight.data[3] = float("nan")
    scorer = Scorer(model, find_state_sites(model), BLOCKS, 1024)
    with pytest.raises(ModelError, match="NaN or infinity behind the states"):
        scorer.one_shot()


def test_states_need_text(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")
    with pytest.raises(ModelError, match="no calibration blocks"):
        Scorer(model, find_state_sites(model), BLOCKS[:0], 1024)
