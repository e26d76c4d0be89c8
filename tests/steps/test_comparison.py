from __future__ import annotations

import pandas as pd
import pytest

import made_up_state
from keepset.files import store
from keepset.settings.figures import FIGURES
from keepset.steps import comparison, drawing


def test_channels_of_models_with_and_without_a_state(tmp_path):
    for name, table in (("a", made_up_state.channels(["mamba2"])), ("b", pd.DataFrame())):
        store.write_table(table, tmp_path / f"{name}.parquet", {"from": name})
    inputs = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    outputs = {name: tmp_path / f"joined/{name}.parquet" for name in ("channels", "quadrants")}
    comparison.sort_channels(inputs, outputs)
    assert len(pd.read_parquet(outputs["channels"])) == 4 * 64
    assert pd.read_parquet(outputs["quadrants"])["model"].tolist() == ["mamba2"]
    assert store.read_json(tmp_path / "joined/quadrants.json")[str(inputs[1])] == {"from": "b"}


def test_a_study_without_tasks_and_states(tmp_path):
    table = made_up_state.perplexity(["hybrid"], blocks=3)
    table = table[(table["site"] != "state") & (table["method"] != "windowed")]
    table.to_parquet(tmp_path / "perplexity.parquet")
    ratios = pd.DataFrame(columns=["model", "corpus", "site", "method", "score", "sparsity"])
    ratios.to_parquet(tmp_path / "ratios.parquet")
    names = ("recall", "state_pairs", "side_by_side", "lengths")
    outputs = {name: tmp_path / f"{name}.parquet" for name in names}
    comparison.compare_settings(
        {
            "perplexity": [tmp_path / "perplexity.parquet"],
            "capability": [],
            "ratios": [tmp_path / "ratios.parquet"],
            "lengths": [],
        },
        {"confidence": 0.95},
        outputs,
    )
    for path in outputs.values():
        assert not len(pd.read_parquet(path))


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("state_sweep", pd.DataFrame({"site": ["ffn"]})),
        ("dial", pd.DataFrame({"site": ["state"]})),
        ("phantom", pd.DataFrame()),
    ],
)
def test_a_study_goes_on_where_there_is_nothing_to_draw(tmp_path, name, table):
    table.to_parquet(tmp_path / "table.parquet")
    figure, inputs = FIGURES[name], [tmp_path / "table.parquet"]
    drawing.draw(name, figure.absent, figure.site, inputs, tmp_path / f"{name}.png")
    assert {path.suffix for path in tmp_path.glob(f"{name}.*")} == {".png", ".svg", ".pdf"}
    model = "feed-forward" if name == "dial" else "recurrent state"
    assert model in figure.absent
