"""Steps of budgets: allotted shares on a study's blocks, and a slimmer model of a study."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from keepset.kinds import find_sites
from keepset.measure.runner import Runner
from keepset.models import load as load_model
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.settings.recipes import read_recipe
from keepset.steps.budgets import evaluate_budgets, slim_model
from keepset.steps.prepare import prepare_model, tokenize_corpus
from keepset.text import load_blocks

IDENTITY = {"study": "s", "model": "m", "origin": "pretrained", "corpus": "c"}
RUN = {"device": "cpu", "dtype": "float32", "batch_tokens": 64}


@pytest.fixture(params=[False, True], ids=["text", "bos"])
def study(request, tmp_path, tiny_checkpoint):
    prepare_model(
        "m", {"path": str(tiny_checkpoint), "bos": request.param}, tmp_path / "model.json"
    )
    words = "The river runs past the old mill, and the mill turns no more. "
    rows = [(s, n, f"{n} {words * 9}") for s in ("calibration", "evaluation") for n in range(20)]
    table = pd.DataFrame(rows, columns=["split", "document", "text"])
    table.to_parquet(tmp_path / "corpus.parquet")
    lengths = {"block": 16, "calibration_tokens": 64, "evaluation_tokens": 320}
    cutting = {"sampling": "documents", "sameness_tokens": 320, "factors": [], "seed": 0}
    tokenize_corpus(
        "c", tmp_path / "corpus.parquet", tmp_path / "model.json", lengths, cutting,
        tmp_path / "blocks.safetensors",
    )  # fmt: skip
    return tmp_path


def inputs(study):
    return {"model": study / "model.json", "blocks": study / "blocks.safetensors"}


def test_rows_are_of_every_allotment_and_level(study):
    output = study / "budgets.parquet"
    budget = {"allotments": ["equal", "loss", "layer"], "levels": [0.2, 0.4]}
    evaluate_budgets(**inputs(study), run=RUN, identity=IDENTITY, budget=budget, output=output)
    table = pd.read_parquet(output)
    blocks = load_blocks(study / "blocks.safetensors")
    assert len(table) == 6 * blocks.n_core
    assert set(table["site"]) == {"all"}
    assert set(table["method"]) == {"dynamic"}
    means = table.groupby(["score", "sparsity"])["nll"].sum()
    assert sorted(means.index) == [(a, s) for a in ("equal", "layer", "loss") for s in (0.2, 0.4)]
    info = json.loads((study / "model.json").read_text())
    model, _ = load_model(info, torch.device("cpu"), torch.float32)
    sites = find_sites(model, ["ffn", "input"])
    rules = {site.key: Rule("magnitude", 0.4, 1, site=site.kind) for site in sites}
    nll = Runner(model, sites, bos=info["bos"]).block_nll(blocks.evaluation, Recipe(rules))
    rows = table[(table["score"] == "equal") & (table["sparsity"] == 0.4)]
    assert rows["nll"].tolist() == pytest.approx(nll[: blocks.n_core].tolist(), rel=1e-6)


def test_a_slimmer_model_of_a_study(study):
    folder, facts = study / "slim-0.5", study / "slim-0.5.json"
    settings = {"budget": 0.5, "save": "speed", "confidence": 0.95, "tokens": 4}
    slim_model(**inputs(study), run=RUN, settings=settings, identity=IDENTITY, output=folder)
    recipe = read_recipe(folder)
    found = json.loads(facts.read_text())["found"]
    assert found["quality"]["ratio_high"] <= 1.5
    assert recipe.model["name"] == "m"
    assert recipe.bos == load_blocks(study / "blocks.safetensors").bos
    assert (folder / "report.html").is_file()
