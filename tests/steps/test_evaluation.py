"""Steps that evaluate: dynamic rules and their runs with noise, with a BOS token or without."""

import json

import pandas as pd
import pytest
import torch

from keepset.calibrate.centres import collect_centres
from keepset.files import store
from keepset.rules.rule import Rule
from keepset.steps.common import Run, load
from keepset.steps.evaluation import evaluate_dynamic, evaluate_rules
from keepset.steps.prepare import prepare_model, tokenize_corpus
from keepset.text import load_blocks

IDENTITY = {"study": "s", "model": "m", "origin": "pretrained", "corpus": "c"}
RUN = {"device": "cpu", "dtype": "float32", "batch_tokens": 64}
GRID = {"scores": ["magnitude"], "sparsities": [0.5, 0.9]}
RULES = {"kind": "ffn", "part": "dynamic", "grid": GRID, "seeds": [1]}


def write_table(folder):
    words = "The river runs past the old mill, and the mill turns no more. "
    rows = [
        (split, number, f"{number} {words * 9}")
        for split in ("calibration", "evaluation")
        for number in range(6)
    ]
    table = pd.DataFrame(rows, columns=["split", "document", "text"])
    table.to_parquet(folder / "corpus.parquet")
    return folder / "corpus.parquet"


@pytest.fixture(params=[False, True], ids=["text", "bos"])
def study(request, tmp_path, tiny_checkpoint):
    source = {"path": str(tiny_checkpoint), "bos": request.param}
    prepare_model("m", source, tmp_path / "model.json")
    lengths = {"block": 16, "calibration_tokens": 64, "evaluation_tokens": 64}
    cutting = {"sampling": "documents", "sameness_tokens": 96, "factors": [], "seed": 0}
    blocks = tmp_path / "blocks.safetensors"
    tokenize_corpus("c", write_table(tmp_path), tmp_path / "model.json", lengths, cutting, blocks)
    return tmp_path


def test_dynamic_rules_and_their_draws(study):
    files = {"output": study / "dynamic.parquet", "rounding": study / "rounding.parquet"}
    inputs = {"model": study / "model.json", "blocks": study / "blocks.safetensors"}
    noise = {"draws": 2, "seed": 5}
    evaluate_dynamic(**inputs, run=RUN, identity=IDENTITY, rules=RULES, noise=noise, **files)
    table, rounding = (pd.read_parquet(files[name]) for name in ("output", "rounding"))
    blocks = load_blocks(study / "blocks.safetensors")
    assert len(blocks.evaluation) == 6
    assert len(table) == 2 * 6
    assert table["document"].tolist() == 2 * blocks.document.tolist()
    assert (table["n_tokens"] == (15 if blocks.bos is None else 16)).all()
    assert len(rounding) == 2 * 2 * blocks.n_core
    assert rounding["draw"].unique().tolist() == [1, 2]
    assert set(rounding.columns) == {*table.columns, "draw"}
    facts = [json.loads(store.sidecar(path).read_text()) for path in files.values()]
    assert facts[0]["bos"] == facts[1]["bos"] == blocks.bos
    dense = study / "dense.parquet"
    evaluate_rules(**inputs, run=RUN, identity=IDENTITY, output=dense)
    causal = {**RULES, "part": "windowed", "grid": {**GRID, "windows": [4]}, "choice": "causal"}
    windowed = study / "windowed.parquet"
    evaluate_rules(**inputs, run=RUN, identity=IDENTITY, output=windowed, rules=causal)
    assert len(pd.read_parquet(dense)) == 6
    assert len(pd.read_parquet(windowed)) == 2 * 4  # rules that are not dynamic: the core


def test_centres_are_those_of_calibration_text(study):
    inputs = {"model": study / "model.json", "blocks": study / "blocks.safetensors"}
    grid = {"scores": ["magnitude", "centred"], "sparsities": [0.9], "windows": [4]}
    rules = {"kind": "ffn", "part": "windowed", "grid": grid, "seeds": [1], "choice": "causal"}
    output = study / "windowed.parquet"
    evaluate_rules(**inputs, run=RUN, identity=IDENTITY, output=output, rules=rules)
    table = pd.read_parquet(output)
    blocks, runner = load_blocks(inputs["blocks"]), load(inputs["model"], Run(**RUN)).runner
    runner.centres = collect_centres(runner.model, runner.sites, blocks.calibration, bos=blocks.bos)
    core = slice(blocks.n_core)
    expected = runner.block_nll(
        blocks.evaluation[core], Rule("centred", 0.9, 4, "causal"), blocks.lead_in[core]
    )
    assert table[table["score"] == "centred"]["nll"].tolist() == expected.tolist()
    assert table[table["score"] == "magnitude"]["nll"].tolist() != expected.tolist()


def test_a_bos_token_changes_every_loss(tmp_path, tiny_checkpoint):
    tables = []
    for bos in (False, True):
        folder = tmp_path / str(bos)
        folder.mkdir()
        prepare_model("m", {"path": str(tiny_checkpoint), "bos": bos}, folder / "model.json")
        lengths = {"block": 16, "calibration_tokens": 16, "evaluation_tokens": 32}
        cutting = {"sampling": "stream", "sameness_tokens": None, "factors": [], "seed": 0}
        blocks = folder / "blocks.safetensors"
        tokenize_corpus("c", write_table(folder), folder / "model.json", lengths, cutting, blocks)
        evaluate_rules(folder / "model.json", blocks, RUN, IDENTITY, folder / "dense.parquet")
        tables.append((pd.read_parquet(folder / "dense.parquet"), load_blocks(blocks)))
    (without, plain), (with_bos, opened) = tables
    assert torch.equal(plain.evaluation, opened.evaluation)
    assert plain.fingerprint != opened.fingerprint
    assert (without["nll"] != with_bos["nll"]).all()
    assert (with_bos["n_tokens"] == without["n_tokens"] + 1).all()
