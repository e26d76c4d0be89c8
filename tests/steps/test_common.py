"""How the steps that run a model load it."""

import pytest
import torch

from keepset import models, settings
from keepset.errors import ConfigError
from keepset.files import store
from keepset.kernels import selection
from keepset.steps.common import Run, load


@pytest.fixture
def prepared(tiny_checkpoint, tmp_path):
    info = models.prepare("llama", settings.Model(path=str(tiny_checkpoint)), tmp_path)
    store.write_json(info, tmp_path / "model.json")
    return tmp_path / "model.json"


def test_what_runs_is_in_the_provenance(prepared):
    loaded = load(prepared, Run("cpu", "float32", kernels={"ffn": "torch", "scan": "torch"}))
    assert loaded.provenance["kernels"] == {"ffn": "torch", "scan": "torch"}
    assert loaded.runner.selection.wanted == settings.Kernels(ffn="torch", scan="torch")


@pytest.mark.parametrize(
    ("ffn", "dtype", "ran"),
    [("auto", "bfloat16", "numba"), ("auto", "float64", "torch"), ("numba", "float32", "numba")],
)
def test_what_runs_rules_on_neurons_is_in_the_provenance(prepared, monkeypatch, ffn, dtype, ran):
    monkeypatch.setattr(models, "resolve_dtype", lambda *_: getattr(torch, dtype))
    loaded = load(prepared, Run("cpu", dtype, kernels={"ffn": ffn}))
    assert loaded.provenance["kernels"]["ffn"] == ran


def test_without_numba_torch_runs(prepared, without_numba):
    loaded = load(prepared, Run("cpu", "float32"))
    assert loaded.provenance["kernels"]["ffn"] == "torch"


def test_what_is_named_and_missing_stops_the_job(prepared, monkeypatch):
    monkeypatch.setattr(selection, "why_not_triton", lambda _: "no Triton here")
    with pytest.raises(ConfigError, match=r"kernels\.state: no Triton here"):
        load(prepared, Run("cpu", "float32", kernels={"state": "triton"}))
