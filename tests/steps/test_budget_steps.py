"""Steps of budgets: allotted shares on a study's blocks, and a slimmer model of a study."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from keepset.kinds import find_sites
from keepset.measure.runner import Runner
from keepset.models import load as load_model, still_to_do
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.settings.recipes import read_recipe
from keepset.steps.budgets import evaluate_budgets, slim_model
from keepset.steps.gains import time_recipes
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


def allot(study, allotments, levels):
    """The table of `evaluate_budgets`, and the files of its recipes, in order."""
    files = [study / f"{allotment}-{level}.yaml" for level in levels for allotment in allotments]
    evaluate_budgets(
        **inputs(study), run=RUN, identity=IDENTITY, output=study / "budgets.parquet",
        budget={"allotments": allotments, "levels": levels}, recipes=files,
    )  # fmt: skip
    return pd.read_parquet(study / "budgets.parquet"), files


def test_rows_are_of_every_allotment_and_level(study):
    table, files = allot(study, ["equal", "loss", "layer"], [0.2, 0.4])
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
    written = {(one.found["score"], one.found["sparsity"]): one for one in map(read_recipe, files)}
    assert set(written) == set(means.index)
    for (allotment, level), recipe in written.items():
        nll = Runner(model, sites, bos=recipe.bos).block_nll(blocks.evaluation, recipe)
        rows = table[(table["score"] == allotment) & (table["sparsity"] == level)]
        assert rows["nll"].tolist() == pytest.approx(nll[: blocks.n_core].tolist(), rel=1e-6)
    assert still_to_do(model, recipe) is recipe


def ratios(**rows):
    """A `ratios` table: name of a row -> its site, score, sparsity and ratio."""
    columns = ["site", "score", "sparsity", "ratio"]
    table = pd.DataFrame(rows.values(), columns=columns)
    names = {"model": "m", "corpus": "c", "method": "dynamic"}
    return table.assign(**names, ci_low=table["ratio"] - 0.01, ci_high=table["ratio"] + 0.01)


def test_what_costs_little_is_timed(study):
    _, files = allot(study, ["equal", "loss"], [0.2])
    settings = {"budget": 0.5, "save": "speed", "confidence": 0.95, "tokens": 4}
    folder = study / "slim-0.5"
    slim_model(**inputs(study), run=RUN, settings=settings, identity=IDENTITY, output=folder)
    table = ratios(
        neurons=("ffn", "magnitude", 0.5, 1.02),
        costly=("ffn", "magnitude", 0.9, 1.2),
        inputs=("input", "impact", 0.25, 1.01),
        seeded=("ffn", "random", 0.5, 1.0),
        equal=("all", "equal", 0.2, 1.03),
        loss=("all", "loss", 0.2, 1.11),
    )
    table = pd.concat([table, table.assign(model="other")])
    table.to_parquet(study / "ratios.parquet")
    files = {"ratios": study / "ratios.parquet", "recipes": files, "slim": [folder]}
    time_recipes(
        {**inputs(study), **files}, RUN, {"tokens": 4, "within": 0.1}, IDENTITY,
        study / "gains.parquet",
    )  # fmt: skip
    gains = pd.read_parquet(study / "gains.parquet")
    assert list(gains["way"]) == ["kernels", "rule", "rule", "budget", "slim"]
    assert list(gains["ratio"][:4]) == [1.0, 1.02, 1.01, 1.03]
    assert gains["bytes_left_out"].iloc[0] == 0
    assert gains["bytes_left_out"].iloc[1:].between(0.05, 0.7).all()
    found = read_recipe(folder).found
    slimmer = gains.iloc[-1]
    assert slimmer["bytes_left_out"] == found["saved"]
    assert slimmer["ci_high"] == found["quality"]["ratio_high"]
    assert (gains["speedup_p20"] <= gains["speedup_p80"]).all()
    assert (gains["rounds"] == 3).all()


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
