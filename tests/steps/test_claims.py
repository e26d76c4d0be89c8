from __future__ import annotations

import pandas as pd
import pytest

from keepset.files import store
from keepset.steps import claims

STATISTICS = {"confidence": 0.95, "perplexity_margin": 0.01}
SETTINGS = {"study": "s", "statistics": STATISTICS, "tasks": {"t": "recall"}, "induction": []}
OUTPUTS = ("csv", "cases", "tex", "html", "parquet")


@pytest.fixture
def inputs(tmp_path):
    """One hybrid specimen with tables of its state."""
    folder = tmp_path / "hybrid"
    info = {"name": "hybrid", "origin": "specimen", "model_type": "zamba2", "activation": "gelu"}
    store.write_json(info, folder / "model.json")
    channels = pd.DataFrame({"layer": [0, 0, 1, 1], "group": 0, "channel": [0, 1, 0, 1]})
    channels = channels.assign(magnitude=[1.0, 2, 3, 4], energy=[4.0, 3, 2, 1], n_documents=8)
    channels = pd.concat([channels.assign(left_out=group) for group in (-1, 0, 1)])
    peak = pd.DataFrame({"method": ["ghost", "taylor"], "peak_bytes": [10, 40], "n_tokens": 8})
    correlation = pd.DataFrame(
        {"study": "s", "model": "hybrid", "origin": "specimen", "corpus": "wiki", "site": "state"}
        | {"size": "magnitude", "impact": "ghost", "layer": [0, -1] * 3, "n_documents": 8}
        | {"left_out": [-1, -1, 0, 0, 1, 1], "spearman": [-0.3, -0.3, -0.31, -0.31, -0.3, -0.3]}
    )
    ablations = pd.DataFrame({"model": "hybrid", "origin": "specimen", "corpus": "wiki"}, [0])
    corpus = pd.DataFrame(
        {"split": ["calibration", "evaluation", "evaluation", "evaluation", "heldout"]}
        | {"document": [0, 1, 2, 1, 3], "section": [0, 0, 0, 1, 0]}
    )
    store.write_table(corpus, tmp_path / "wiki.parquet", {})
    paths = {}
    for name, table in (
        ("channels", channels), ("memory", peak), ("correlation", correlation),
        ("ablations", ablations),
    ):  # fmt: skip
        path = folder / "wiki" / f"{name}.parquet"
        store.write_table(table, path, {})
        paths[name] = [path]
    return {"models": [folder / "model.json"], "corpora": [tmp_path / "wiki.parquet"], **paths}


def test_tables_are_named_after_their_folders(inputs):
    evidence = claims.gather(inputs, {**SETTINGS, "l1": ["hybrid"]})
    for table in (evidence.channels, evidence.memory, evidence.ablations):
        assert set(table["model"]) == {"hybrid"}
        assert set(table["corpus"]) == {"wiki"}
        assert set(table["origin"]) == {"specimen"}
    assert evidence.models["l1"].tolist() == [True]
    # Sections of one document are no more documents.
    assert evidence.documents == {"wiki": 2}
    assert evidence.calibration_documents == {"wiki": 1}
    assert len(evidence.perplexity) == len(evidence.capability) == 0


def test_writes_every_form(inputs, tmp_path):
    outputs = {name: tmp_path / "out" / f"claims.{name}" for name in OUTPUTS}
    claims.judge_claims(inputs, {**SETTINGS, "l1": []}, outputs)
    ledger = pd.read_csv(outputs["csv"]).set_index("claim")
    assert ledger.loc["C16", "verdict"] == "reproduced"
    assert ledger.loc["C3", "scope"] == "direction"
    assert ledger.loc["C4", "verdict"] == "not tested here"
    assert pd.read_parquet(outputs["parquet"])["verdict"].tolist() == ledger["verdict"].tolist()
    facts = store.read_json(outputs["parquet"].with_suffix(".json"))
    assert facts["settings"]["study"] == "s"
    again = {name: tmp_path / "again" / f"claims.{name}" for name in OUTPUTS}
    claims.judge_claims(inputs, {**SETTINGS, "l1": []}, again)
    for name in OUTPUTS:
        assert again[name].read_bytes() == outputs[name].read_bytes()


def test_tasks_that_do_not_count_are_left_out(inputs, tmp_path):
    """The first items of another task are no second witness."""
    path = tmp_path / "capability.parquet"
    rows = pd.DataFrame({"task": ["t", "t", "t-first"], "item": [0, 1, 0], "access": "none"})
    store.write_table(rows, path, {})
    evidence = claims.gather({**inputs, "capability": [path]}, {**SETTINGS, "l1": []})
    assert evidence.capability["task"].tolist() == ["t", "t"]
