"""Size against impact, from a prepared model and its activation cache to two tables."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from keepset import models, text
from keepset.calibrate.activations import collect_moments
from keepset.calibrate.units import unit_table
from keepset.files import store
from keepset.kinds import find_sites
from keepset.settings import Model
from keepset.steps import activations, correlation, significance, states

RUN = {"device": "cpu", "dtype": "float32", "batch_tokens": 64}
IDENTITY = {"study": "s", "model": "m", "origin": "specimen", "corpus": "c"}
SETTINGS = {
    "kind": "ffn",
    "gradients": True,
    "seed": 1,
    "statistics": {"confidence": 0.95},
    "ablation": {"units": 16, "tokens": 40},
}
WORDS = ["river", "stone", "winter", "market", "garden", "letter", "harbour", "summer"]


def prepare(model, tiny_tokenizer, path):
    """A prepared model, and blocks of several documents."""
    model.save_pretrained(path / "checkpoint")
    tiny_tokenizer.save_pretrained(path / "checkpoint")
    info = models.prepare("m", Model(path=str(path / "checkpoint")), path)
    store.write_json(info, path / "model.json")
    documents = [" ".join(WORDS[at:] + WORDS[:at]) + ". " for at in range(6)]
    rows = [
        (split, number, words * 4)
        for split in ("calibration", "evaluation")
        for number, words in enumerate(documents)
    ]
    table = pd.DataFrame(rows, columns=["split", "document", "text"])
    blocks = text.make_blocks("c", table, tiny_tokenizer, 16, 96, 32)
    text.save_blocks(blocks, path / "blocks.safetensors")
    return path / "model.json", path / "blocks.safetensors"


@pytest.fixture(scope="module")
def folder(tiny_model, tiny_tokenizer, tmp_path_factory):
    """The same with the activation cache."""
    path = tmp_path_factory.mktemp("size-impact")
    files = prepare(tiny_model("llama"), tiny_tokenizer, path)
    cache = path / "activations.safetensors"
    activations.cache_activations(*files, RUN, ["ffn"], True, IDENTITY, cache)
    return path


def correlate(folder, ablation=SETTINGS["ablation"], run=RUN):
    outputs = {name: folder / f"{name}.parquet" for name in ("correlation", "ablations")}
    files = (folder / name for name in ("model.json", "blocks.safetensors"))
    settings = {**SETTINGS, "ablation": ablation}
    cache = folder / "activations.safetensors"
    correlation.correlate_size_impact(*files, cache, run, settings, IDENTITY, outputs)
    return [pd.read_parquet(path) for path in outputs.values()]


def test_each_document_of_the_calibration_text_is_left_out(folder):
    table, _ = correlate(folder)
    blocks = text.load_blocks(folder / "blocks.safetensors")
    n_documents = len(blocks.calibration_document.unique())
    assert n_documents > 2
    assert sorted(table["left_out"].unique()) == list(range(-1, n_documents))
    assert set(table.query("impact != 'loss'")["n_documents"]) == {n_documents}
    ends = table.query("left_out == -1 and impact == 'weight'")[["ci_low", "ci_high"]]
    assert ends.notna().all(axis=None)
    # Without the first document, from scratch.
    network, _ = models.load(store.read_json(folder / "model.json"), torch.device("cpu"), "float32")
    sites = find_sites(network, ["ffn"])
    rest = blocks.calibration[blocks.calibration_document != blocks.calibration_document[0]]
    units = unit_table(sites, collect_moments(network, sites, rest))
    alone = units[units["layer"] == 1]
    row = table.query("left_out == 0 and layer == 1 and impact == 'weight'").iloc[0]
    expected = alone["magnitude"].corr(alone["weight"], method="spearman")
    assert row["spearman"] == pytest.approx(expected)


def test_ablated_units_are_a_table_of_their_own(folder):
    table, ablated = correlate(folder)
    assert len(ablated) == 16
    assert ablated.columns[:4].tolist() == list(IDENTITY)
    assert {"taylor", "taylor_other", "loss"} <= set(ablated)
    # Three blocks of 16 hold 40 tokens.
    assert set(ablated["n_tokens"]) == {48}
    of_layers = table.query("impact == 'loss' and size == 'magnitude'").set_index("layer")
    for layer, units in ablated.groupby("layer"):
        row = of_layers.loc[layer]
        expected = units["magnitude"].corr(units["loss"].abs(), method="spearman")
        assert row["spearman"] == pytest.approx(expected)


def test_changes_of_the_loss_are_not_those_of_rounding(tiny_model, tiny_tokenizer, tmp_path):
    """In bfloat16 what a unit changes drowns in what is rounded off."""
    files = prepare(tiny_model("llama"), tiny_tokenizer, tmp_path)
    half = {**RUN, "dtype": "bfloat16"}
    cache = tmp_path / "activations.safetensors"
    found = []
    for run in (RUN, half):
        activations.cache_activations(*files, run, ["ffn"], True, IDENTITY, cache)
        found.append(correlate(tmp_path, run=run)[1])
    both = found[0].merge(found[1], on=["layer", "unit"], suffixes=("", "_half"))
    assert len(both) > 8
    assert both["loss_half"].tolist() == pytest.approx(both["loss"].tolist(), abs=2e-6)
    assert store.read_json(tmp_path / "ablations.json")["dtype"] == "torch.float32"
    assert store.read_json(tmp_path / "correlation.json")["dtype"] == "torch.bfloat16"


def test_a_corpus_without_ablations_has_an_empty_table(folder):
    table, ablated = correlate(folder, ablation=None)
    assert not len(ablated)
    assert "loss" not in set(table["impact"])
    assert store.read_json(folder / "ablations.json")["model"]


def test_each_document_of_a_states_text_is_left_out(tiny_model, tiny_tokenizer, tmp_path):
    files = prepare(tiny_model("mamba2"), tiny_tokenizer, tmp_path)
    n_documents = len(text.load_blocks(files[1]).calibration_document.unique())
    outputs = {name: tmp_path / f"{name}.parquet" for name in ("channels", "memory")}
    outputs["sets"] = tmp_path / "state.safetensors"
    chosen = {"static": {"scores": ["ghost", "taylor"], "sparsities": [0.5]}, "seeds": [1]}
    states.score_state(*files, RUN, chosen, IDENTITY, outputs)
    channels = pd.read_parquet(outputs["channels"])
    output = tmp_path / "correlation-state.parquet"
    significance.correlate_state(outputs["channels"], {"confidence": 0.95}, IDENTITY, output)
    table = pd.read_parquet(output)
    for one in (channels, table):
        assert sorted(one["left_out"].unique()) == list(range(-1, n_documents))
        assert set(one["n_documents"]) == {n_documents}
    assert table.query("left_out == -1 and impact == 'ghost'")["ci_low"].notna().all()
    own = channels.query("left_out == 1 and layer == 0")
    row = table.query("left_out == 1 and layer == 0 and size == 'magnitude' and impact == 'ghost'")
    expected = own["magnitude"].corr(own["energy"], method="spearman")
    assert row["spearman"].tolist() == pytest.approx([expected])
