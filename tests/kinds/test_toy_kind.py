"""A new kind of site is one module and one entry: nothing else in keepset is touched."""

from __future__ import annotations

import pytest
import torch
import toy_kind

from keepset import kinds
from keepset.analyse.correlation import correlation_table
from keepset.calibrate import activations
from keepset.calibrate.units import unit_table
from keepset.errors import ConfigError, ModelError
from keepset.measure.ablations import measure_ablations, sample_units
from keepset.measure.runner import Runner
from keepset.measure.tables import capability_table, perplexity_table
from keepset.rules.kinds import KINDS
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule, describe, n_kept
from keepset.text import Encoded, Passages

IDENTITY = {"study": "s", "model": "m"}
RULES = [
    Rule("magnitude", 0.5, "corpus", site="attention"),
    Rule("magnitude", 0.5, 1, site="attention"),
    Rule("magnitude", 0.5, 4, site="attention"),
    Rule("impact", 0.5, 4, "causal", site="attention"),
    Rule("random", 0.5, "sequence", "causal", seed=3, site="attention"),
]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(KINDS, "attention", toy_kind.KIND)


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


def ids(rows=3, tokens=12, seed=2):
    return torch.randint(4, 260, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def moments_of(model):
    sites = kinds.of("attention").find(model)
    return activations.collect_moments(model, sites, ids(seed=5), gradients=True, batch_tokens=96)


def runner(model, tmp_path):
    path = tmp_path / "activations.safetensors"
    owner = {"model": "m", "gradients": True}
    activations.save(moments_of(model), path, owner)
    keep_sets = kinds.load_sets(
        {"attention": path}, {"model": "m"}, {"attention": {"gradients": True}}
    )
    return Runner(model, kinds.find_sites(model), keep_sets=keep_sets, batch_tokens=24)


def test_its_sites_are_found_beside_all_others(model):
    others = [site.key for site in kinds.find_sites(model) if site.kind != "input"]
    assert others == ["ffn.000", "ffn.001", "attention.000", "attention.001"]
    assert [site.n_units for site in kinds.find_sites(model, ["attention"])] == [32, 32]


def masked_loss(model, blocks, masks):
    """Nats of each block with inputs of the output projections left out, by plain hooks."""
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, args, mask=masks[f"attention.{index:03d}"]: (
                torch.cat([args[0][:, :1], args[0][:, 1:] * mask], dim=1),
            )
        )
        for index, layer in enumerate(model.model.layers)
    ]
    with torch.inference_mode():
        losses = [float(model(input_ids=row[None], labels=row[None]).loss) for row in blocks]
    for handle in handles:
        handle.remove()
    return [loss * (blocks.shape[1] - 1) for loss in losses]


def test_a_static_rule_is_a_mask_on_its_inputs(model, tmp_path):
    rule = RULES[0]
    sums = {key: site["abs_sum"] for key, site in moments_of(model).items()}
    kept = n_kept(32, rule.sparsity)
    masks = {key: top_mask(value.float()[None], kept)[0] for key, value in sums.items()}
    nll = runner(model, tmp_path).block_nll(ids(), rule)
    assert nll.tolist() == pytest.approx(masked_loss(model, ids(), masks), rel=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=describe)
def test_every_rule_holds_and_is_taken_back(model, tmp_path, rule):
    run = runner(model, tmp_path)
    lead_in = ids(seed=9)
    dense = run.block_nll(ids())
    assert not torch.equal(run.block_nll(ids(), rule, lead_in), dense)
    assert torch.equal(run.block_nll(ids()), dense)


def test_causal_sets_start_from_its_own_lead_in(model, tmp_path):
    run = runner(model, tmp_path)
    scores = run.lead_in_scores(RULES[3], ids(seed=9))
    assert {key: score.shape for key, score in scores.items()} == {
        "attention.000": (3, 32),
        "attention.001": (3, 32),
    }


def test_its_rows_stand_in_the_tables(model, tmp_path):
    run = runner(model, tmp_path)
    ones = torch.ones(3, dtype=torch.int64)
    blocks = Passages(
        evaluation=ids(),
        document=torch.arange(3),
        lead_in=ids(seed=9),
        n_tokens=11 * ones,
        n_words=ones,
        n_bytes=ones,
        n_core=3,
    )
    table = perplexity_table(run, blocks, [None, *RULES], IDENTITY, "toy")
    assert table["site"].unique().tolist() == ["none", "attention"]
    assert table.loc[table["site"] == "attention", "access"].unique().tolist() == ["none"]
    assert set(table["method"]) == {"dense", "static", "dynamic", "windowed"}
    items = [Encoded(ids(1, 9)[0].tolist(), 7)]
    answers = capability_table(run, items, RULES, IDENTITY, "toy")
    assert set(answers["site"]) == {"attention"}


def test_size_against_impact(model, tmp_path):
    run = runner(model, tmp_path)
    sites = run.sites_of("attention")
    facts = {"left_out": -1, "n_documents": 1}
    units = unit_table(sites, moments_of(model)).assign(**facts)
    sample = sample_units(units, 16, seed=1)
    loss = measure_ablations(run, sites, sample, ids(1), "toy")
    table = correlation_table(toy_kind.KIND, [units], 0.95, IDENTITY, sample.assign(loss=loss))
    assert set(table["site"]) == {"attention"}
    assert set(table["impact"]) == {"weight", "output", "taylor", "loss"}


def test_what_it_lacks_is_said_in_its_own_words(model, tiny_model):
    with pytest.raises(ConfigError, match=r"no attention outputs were chosen .* grid\.static"):
        Runner(model, kinds.find_sites(model)).block_nll(ids(), RULES[0])
    mamba = tiny_model("mamba2")
    with pytest.raises(ModelError, match="the model has no attention outputs"):
        Runner(mamba, kinds.find_sites(mamba)).block_nll(ids(), RULES[1])


def test_nan_names_the_first_of_all_sites(model, tmp_path):
    run = runner(model, tmp_path)
    model.model.layers[1].self_attn.v_proj.weight.data[:] = float("nan")
    with pytest.raises(ModelError, match=r"NaN.*model\.layers\.1\.self_attn\.o_proj"):
        run.block_nll(ids())
