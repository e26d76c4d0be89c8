"""The DAG end to end, on the tiny study."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from keepset import settings, text
from keepset.analyse.claims import CLAIMS, VERDICTS
from keepset.cli import main
from keepset.run import record
from keepset.run.verify import verify
from keepset.settings import steps

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]


def table(study, path):
    return pd.read_parquet(study.results() / path)


def test_everything_is_there(finished):
    for name in (
        "decoupling", "predicting", "static_dynamic", "scores", "dial", "capability",
        "state_sweep", "phantom", "memory_dial", "state_length", "side_by_side", "recall", "claims",
        "loss_curve",
    ):  # fmt: skip
        for ending in ("png", "svg", "pdf"):
            assert (finished.results() / f"figures/{name}.{ending}").stat().st_size > 1000
    for name in (
        "perplexity", "dial", "capability", "trend", "correlations", "recall", "state_pairs",
        "side_by_side", "lengths",
    ):  # fmt: skip
        assert (finished.results() / f"tables/{name}.csv").read_text().count("\n") > 1
        assert "\\begin{longtable}" in (finished.results() / f"tables/{name}.tex").read_text()
    assert not [path for path in finished.results().rglob(".*.*") if path.is_file()]


def test_the_run_ends_with_the_ledger(finished, capsys):
    ledger = pd.read_csv(finished.results() / "claims.csv").set_index("claim")
    cases = pd.read_csv(finished.results() / "claims_cases.csv")
    assert list(ledger.index) == [claim.id for claim in CLAIMS]
    assert set(ledger["verdict"]) <= set(VERDICTS)
    # The random hybrid has a state; the random SwiGLU model has all runs of the static claim.
    assert ledger.loc["C12", "verdict"] != "not tested here"
    assert ledger.loc["C4", "cases"] == 1
    assert set(cases.loc[cases["claim"] == "C4", "model"]) == {"llama", "relu"}
    assert main(["claims", str(finished.results())]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{claim.id:<4}" in f"\n{shown}" for claim in CLAIMS)
    assert "Claims of study tiny" in (finished.results() / "claims.html").read_text()
    assert "longtable" in (finished.results() / "tables/claims.tex").read_text()


def test_an_outside_script_finds_the_same_ledger(finished):
    script = ROOT / "tests/analyse/claims/outside.py"
    command = [sys.executable, str(script), str(finished.results())]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "claims agree to 1e-9" in run.stdout, run.stderr


def test_a_second_run_does_nothing(finished):
    assert "Nothing to be done" in "".join(finished.run().stderr)


def test_dense_perplexity_equals_plain_transformers(finished):
    folder = finished.results() / "llama/letters"
    blocks = text.load_blocks(folder / "blocks.safetensors").evaluation
    model = AutoModelForCausalLM.from_pretrained(finished.folder / "data/models/llama")
    with torch.no_grad():
        losses = [float(model(input_ids=row[None], labels=row[None]).loss) for row in blocks]
    dense = table(finished, "llama/letters/perplexity.parquet").query("method == 'dense'")
    ours = dense["nll"].sum() / dense["n_tokens"].sum()
    assert math.exp(ours) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_every_setting_of_the_grid_has_every_block(finished):
    rows = table(finished, "relu/letters/perplexity.parquet")
    assert set(rows["origin"]) == {"specimen"}
    keys = ["site", "method", "score", "seed", "sparsity", "window", "choice"]
    counts = rows.groupby(keys)["block"].nunique()
    assert set(counts) == {5}  # 160 tokens
    assert counts.groupby("site").size().to_dict() == {
        "none": 1,
        "ffn": 12 + 2 + 4 + 6,  # (4 scores + 2 seeds) x 2, dynamic x 2, oracle 2 x 2, causal 3 x 2
        "input": 3,  # static, dynamic, windowed
        "all": 3,  # equal, loss, layer
    }


def test_capability_covers_every_item_and_method(finished):
    rows = table(finished, "llama/last-word/capability.parquet")
    assert rows.groupby(["method", "choice"])["item"].nunique().eq(12).all()
    assert set(rows["method"]) == {"dense", "static", "dynamic", "windowed"}


def test_ablations_are_measured_where_asked(finished):
    assert "loss" in set(table(finished, "llama/letters/correlation.parquet")["impact"])


def test_results_say_where_they_come_from(finished):
    sidecar = json.loads((finished.results() / "llama/letters/dense.json").read_text())
    assert sidecar["device"] == "cpu"
    assert sidecar["dtype"] == "torch.float32"
    assert sidecar["packages"]["torch"] == torch.__version__


def test_logs_name_every_setting_with_its_rate(finished):
    log = (finished.results() / "logs/evaluate_windowed/llama.letters.causal.log").read_text()
    assert re.search(
        r"llama letters windowed-causal: windowed magnitude 0.9 W=4 causal, .*tokens/s", log
    )


def test_running_again_gives_identical_tables(finished):
    path = finished.results() / "llama/letters/static.parquet"
    before = path.read_bytes()
    finished.run("--forcerun", "evaluate_static", "--until", "evaluate_static")
    assert path.read_bytes() == before


def test_one_rule_of_one_model(finished):
    planned = finished.run(
        "--dry-run", "--forcerun", "evaluate_dynamic", "--config", "only=llama"
    ).stdout
    jobs = re.findall(r"Evaluating (\S+) dynamic", planned)
    assert jobs
    assert set(jobs) == {"llama"}


def test_one_file_of_one_model(finished):
    target = "results/tiny/llama/letters/perplexity.parquet"
    assert finished.planned("--force", target) == {"join_perplexity"}


CHANGES = [
    (
        {"capability": {"sparsity": 0.8}},
        {"evaluate_capability", "test_significance", "write_tables", "draw_capability"},
    ),
    ({"statistics": {"perplexity_margin": 0.02}}, {"correlate_size_impact", "test_significance"}),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_a_changed_value_reruns_what_depends_on_it(finished, change, expected):
    (key, values), *_ = change.items()
    original = finished.config[key]
    finished.config[key] = {**original, **values}
    try:
        planned = finished.planned()
    finally:
        finished.config[key] = original
    assert expected <= planned
    assert not planned & {"prepare_model", "cache_activations", "evaluate_windowed"}


def test_an_added_model_reuses_every_earlier_result(finished):
    finished.config["models"]["again"] = {"path": str(finished.folder / "data/models/llama")}
    try:
        planned = finished.run("--dry-run").stdout
    finally:
        del finished.config["models"]["again"]
    assert set(re.findall(r"Caching activations of (\S+)", planned)) == {"again"}
    assert set(re.findall(r"Preparing model (\S+)", planned)) == {"again"}


@pytest.mark.parametrize(
    ("module", "expected", "spared"),
    [
        ("analyse/stats.py", {"test_significance", "correlate_size_impact"}, {"evaluate_static"}),
        ("analyse/claims/state.py", {"judge_claims", "draw_claims"}, {"test_significance"}),
        (
            "rules/masks.py",
            {"evaluate_static", "evaluate_windowed"},
            {"prepare_model", "prepare_corpus"},
        ),
        ("report/figures/dial.py", {"draw_dial"}, {"test_significance", "evaluate_static"}),
    ],
)
def test_changed_code_reruns_the_rules_that_use_it(finished, module, expected, spared):
    path = finished.folder / "src/keepset" / module
    original = path.read_text()
    path.write_text(original + "\n_ADDED = 1\n")
    try:
        planned = finished.planned()
    finally:
        path.write_text(original)
    assert expected <= planned
    assert not planned & spared


def test_a_comment_reruns_nothing(finished):
    path = finished.folder / "src/keepset/rules/masks.py"
    original = path.read_text()
    path.write_text("# a comment\n" + original)
    try:
        assert finished.planned() == set()
    finally:
        path.write_text(original)


def test_a_corrupt_cache_stops_with_its_name(finished):
    path = finished.results() / "llama/letters/activations.safetensors"
    whole, times = path.read_bytes(), path.stat()
    target = "results/tiny/llama/letters/static.parquet"
    path.write_bytes(whole[: len(whole) // 2])
    try:
        done = finished.run("--forcerun", "evaluate_static", "--", target, check=False)
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert done.returncode != 0
    assert "activations.safetensors: the activation cache cannot be read" in done.stderr
    finished.run(target)
    assert finished.planned() == set()


def test_a_killed_run_leaves_nothing_half_written_and_goes_on(finished):
    path = finished.results() / "llama/letters/windowed-causal.parquet"
    before = path.read_bytes()
    log = finished.results() / "logs/evaluate_windowed/llama.letters.causal.log"
    log.unlink()
    target = "results/tiny/llama/letters/windowed-causal.parquet"
    process = finished.start("--forcerun", "evaluate_windowed", "--", target)
    try:
        while not log.exists():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # Snakemake takes a job's old output away first; what is there must be whole.
    assert not path.exists() or path.read_bytes() == before
    finished.run("--unlock")
    finished.run(target)
    assert path.read_bytes() == before
    assert finished.planned() == set()
    assert not [left for left in finished.results().rglob(".*.*") if left.is_file()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsities": [0.5]}, "sparsities: unknown key"),
        ({"device": "cuda"}, "cuda"),
        ({"only": "nobody"}, "only: unknown model nobody"),
        ({"text": {"block": 0}}, "text.block"),
        (
            {"corpora": {"letters": {"text": {"path": "nowhere/*.txt"}}}},
            "nowhere",
        ),
    ],
)
def test_bad_input_ends_with_a_message(finished, change, message):
    original = dict(finished.config)
    finished.config["study"] = (
        "bad"  # whose results are its own: nothing of the good study is redone
    )
    for key, value in change.items():
        old = finished.config.get(key)
        finished.config[key] = {**old, **value} if isinstance(old, dict) else value
    try:
        done = finished.run("results/bad/llama/letters/dense.parquet", check=False)
    finally:
        finished.config = original
    assert done.returncode != 0
    assert message in done.stderr


def test_verify_finds_nothing_amiss_and_knows_every_rule(finished):
    """What `keepset.settings.steps` says a job's settings are is what the workflow gave it."""
    finished.write()
    config = settings.load(finished.folder / "config.yaml")
    findings, files = verify(finished.results(), config)
    assert findings == []
    assert files > 50
    for path in (finished.results() / "records").rglob("*.json"):
        content = record.read_record(path)
        assert content["rule"] in steps.all_steps()


def test_a_model_that_was_not_downloaded_is_missed_once(finished):
    shutil.copytree(ROOT / "config", finished.folder / "config", dirs_exist_ok=True)
    done = finished.run(
        "--configfile",
        "config/paper.yaml",
        "--config",
        "only=opt-350m",
        "--until",
        "prepare_model",
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.count("error: models.opt-350m.hub: facebook/opt-350m is not in the") == 1
    assert "snakemake download" in done.stderr
    assert done.stderr.count("error: ") == 1


def test_the_report_holds_every_figure(finished):
    finished.run("--report", "report.zip")
    assert (finished.folder / "report.zip").stat().st_size > 10_000


def test_specimens_are_trained_on_demand_only(finished):
    assert not (finished.results() / "training").exists()
    finished.run("train_specimens")
    for name in ("plain", "penalised"):
        folder = finished.results() / "training" / name
        AutoModelForCausalLM.from_pretrained(folder / "model")
        assert pd.read_parquet(folder / "losses.parquet")["step"].max() == 40
    assert not finished.planned("train_specimens")
    finished.config["training"]["specimens"]["plain"]["l1"] = 0.1
    assert {"train_specimen", "train_specimens"} <= finished.planned("train_specimens")
    finished.config["training"]["specimens"]["plain"]["l1"] = 0.0


def test_a_killed_training_goes_on_from_its_checkpoint(finished):
    target = "results/tiny/training/plain/model"
    checkpoint = finished.results() / "training/plain/checkpoint.pt"
    steps = finished.config["training"]["steps"]
    finished.config["training"]["steps"] = 20_000
    process = finished.start(target)
    try:
        while not checkpoint.with_suffix(".pt.other").exists() or not checkpoint.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    done = torch.load(checkpoint, weights_only=True)["step"]
    finished.run("--unlock")
    process = finished.start("--rerun-incomplete", target)
    log = finished.results() / "logs/train_specimen/plain.log"
    try:
        while "resumed at step" not in (log.read_text() if log.exists() else ""):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        finished.config["training"]["steps"] = steps
        finished.run("--unlock")
    resumed = int(re.search(r"resumed at step (\d+)", log.read_text())[1])
    assert done <= resumed < 20_000
    assert resumed >= 10


def test_speed_is_measured_on_demand_only(finished):
    assert not (finished.results() / "kernels.parquet").exists()
    finished.run("benchmarks")
    for name in ("speedup", "frontier"):
        assert (finished.results() / f"figures/{name}.png").stat().st_size > 1000
    rows = table(finished, "kernels.parquet")
    assert set(rows["model"]) == {"tiny", "llama", "relu", "hybrid"}
    assert set(rows["level"]) == {"kernel", "ffn", "model"}
    assert set(rows.loc[rows["level"] != "model", "dtype"]) == {"float32", "bfloat16"}
    assert set(rows.loc[rows["level"] == "model", "dtype"]) == {"float32"}
    assert len(pd.read_csv(finished.results() / "kernels.csv")) == len(rows)
    facts = json.loads((finished.results() / "kernels.json").read_text())["llama"]
    assert facts["bandwidth_bytes_per_s"] > 0
    assert facts["crossovers_ms"]
    assert not finished.planned("benchmarks")


def test_slimmer_models_are_made_on_demand_only(finished):
    made = {"slim_model", "time_recipes", "join_gains", "draw_gain", "slim"}
    assert made <= finished.planned("slim")
    assert not made & finished.planned()
