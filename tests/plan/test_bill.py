"""`keepset plan`: the bill of a study, without weights and without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from keepset import plan, settings
from keepset.cli import main
from keepset.plan import machine

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "config/paper.yaml"


@pytest.fixture(autouse=True)
def _no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


def asked(capsys, *arguments):
    assert main(["plan", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_papers_bill_adds_up(capsys):
    found = json.loads(asked(capsys, PAPER, "--json"))
    *rows, total = found["rows"]
    assert total["rule"] == "total"
    for key in ("jobs", "tokens", "flops", "bytes", "seconds"):
        assert total[key] == pytest.approx(sum(row[key] for row in rows))
    assert total["gpu"] == max(row["gpu"] for row in rows)
    config = settings.load(PAPER)
    assert total["jobs"] == len(plan.jobs(config))
    assert {row["model"] for row in rows} == {*config.models, None}
    assert {known["source"] for known in found["models"].values()} == {"keepset's table"}


def test_the_text_names_models_rules_and_assumptions(capsys):
    shown = asked(capsys, PAPER, "--only", "opt-1.3b,mamba2-130m", "--device", "cuda")
    assert "opt-1.3b: 1.32 G parameters (keepset's table)" in shown
    assert "50 TFLOP/s, 1e+03 GB/s (default of cuda" in shown
    assert "mamba2-370m" not in shown
    lines = [line.split() for line in shown.splitlines()]
    (dense,) = [line for line in lines if line[:2] == ["evaluate_dense", "6"]]
    assert dense[2:4] == ["786", "k"]  # two models, three corpora, 131,072 tokens
    assert len([line for line in lines if line[:1] == ["sum"]]) == 3


def test_time_follows_the_stated_rate(capsys):
    def seconds(*options):
        rows = json.loads(asked(capsys, PAPER, "--only", "opt-1.3b", "--json", *options))["rows"]
        return {row["rule"]: row["seconds"] - row["jobs"] * plan.START_S for row in rows}

    slow, fast = seconds("--rate", "1"), seconds("--rate", "100")
    weights = 3 * 2 * 1315758080 / plan.LOAD
    assert slow["evaluate_dense"] - weights == pytest.approx(
        100 * (fast["evaluate_dense"] - weights)
    )


def test_the_speed_of_this_machine_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(machine, "_SIDE", 64)
    monkeypatch.setattr(machine, "_SECONDS", 0.01)
    options = ("--device", "cpu", "--measure", "--json")
    speed = json.loads(asked(capsys, PAPER, "--only", "opt-350m", *options))["speed"]
    assert 1e7 < speed["flops"] < 1e14
    assert 1e8 < speed["bytes"] < 1e13
    assert speed["source"].startswith("measured here")


def test_models_at_hand_are_counted(capsys, tmp_path, tiny_model):
    """A family with a formula, and one that transformers has to build."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    models = {}
    for family in ("llama", "gpt2"):
        tiny_model(family).save_pretrained(tmp_path / family)
        models[family] = {"path": str(tmp_path / family), "sites": ["ffn"]}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**config, "models": models, "specimens": None}))
    found = json.loads(asked(capsys, path, "--device", "cpu", "--json"))["models"]
    for family in models:
        size = found[family]["size"]
        assert size["parameters"] == tiny_model(family).num_parameters()
        assert (size["ffn_layers"], size["n_units"]) == (2, 48)
        assert found[family]["source"] == str(tmp_path / family / "config.json")
    assert found["gpt2"]["size"]["attention_layers"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "0"], "--rate 0: give a positive number"),
        (["--bandwidth", "-1"], "--bandwidth -1: give a positive number"),
        (["--rate", "1", "--measure"], "--measure: leave out --rate"),
        (["--only", "nobody"], "only: unknown model nobody"),
    ],
)
def test_bad_options_end_with_a_message(capsys, options, message):
    assert main(["plan", str(PAPER), *options]) == 1
    assert message in capsys.readouterr().err


def test_a_device_that_is_not_here_is_not_measured(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["plan", str(PAPER), "--device", "cuda", "--measure"]) == 1
    assert "--measure needs the device of the study" in capsys.readouterr().err


def test_an_unknown_model_says_how_to_get_its_size(capsys, tmp_path):
    config = yaml.safe_load(PAPER.read_text())
    config["models"] = {"far": {"hub": "someone/far"}, "near": {"hub": "facebook/opt-350m"}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["plan", str(path)]) == 1
    error = capsys.readouterr().err
    assert "models.far.hub: someone/far" in error
    assert "snakemake download" in error
    assert "near" not in error


def test_a_missing_checkpoint_is_named(capsys, tmp_path):
    config = yaml.safe_load(PAPER.read_text())
    config["models"] = {"gone": {"path": str(tmp_path / "gone")}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["plan", str(path)]) == 1
    assert f"models.gone.path: {tmp_path / 'gone'} does not exist" in capsys.readouterr().err
