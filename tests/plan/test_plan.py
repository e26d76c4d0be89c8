"""The arithmetic of a study's cost, against cases worked by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from keepset import plan, settings
from keepset.plan import Job, cost, jobs, resources, work
from keepset.plan.cost import _BASE, _BASE_BESIDE_GPU, _CONTEXT
from keepset.plan.sizes import Size, table

ROOT = Path(__file__).parents[2]
WIKI = {"model": "qwen2.5-0.5b", "corpus": "wikitext2"}


@pytest.fixture(scope="module")
def paper():
    return settings.load(ROOT / "config/paper.yaml")


@pytest.fixture(scope="module")
def embedded():
    config = settings.load(ROOT / "config.yaml")
    return config.model_copy(update={"specimens": str(ROOT / "specimens")})


QWEN = table()["Qwen/Qwen2.5-0.5B"]


def tokens(config, rule, size=QWEN, **names):
    return sum(part.tokens for part in work(config, Job(rule, {**WIKI, **names}), size))


def test_tokens_by_hand(paper):
    """64 blocks of 1,024 tokens are evaluated, 128 dense and under dynamic rules.

    Static: 4 scores and 5 seeds at 5 sparsities.
    """
    assert tokens(paper, "evaluate_dense") == 131072
    assert tokens(paper, "evaluate_static") == (4 + 5) * 5 * 65536
    # and three times with noise, on the blocks of every rule
    assert tokens(paper, "evaluate_dynamic") == 2 * 5 * (131072 + 3 * 65536)
    few_blocks = paper.statistics.model_copy(update={"rounding_tokens": 5000})
    few = paper.model_copy(update={"statistics": few_blocks})
    assert tokens(few, "evaluate_dynamic") == 2 * 5 * (131072 + 3 * 5 * 1024)
    no_draws = paper.statistics.model_copy(update={"rounding_draws": 0})
    without = paper.model_copy(update={"statistics": no_draws})
    assert tokens(without, "evaluate_dynamic") == 2 * 5 * 131072
    # 11 windows at 5 sparsities; the oracle at W = 1 is the dynamic rule.
    assert tokens(paper, "evaluate_windowed", choice="oracle") == 10 * 5 * 65536
    # The text before every block is run once.
    assert tokens(paper, "evaluate_windowed", choice="causal") == (11 * 5 + 1) * 65536
    assert tokens(paper, "cache_activations") == 131072
    # 8 blocks; of each, 8 rows are run dense and then with 256 units left out, 8 at a time.
    assert tokens(paper, "correlate_size_impact") == 8 * (1 + 32) * 8 * 1024
    assert tokens(paper, "correlate_size_impact", corpus="c4") == 0
    # dense, static, dynamic, and two choices of windows
    items = round(5153 * plan.PASSAGE_WORDS * plan.TOKENS_PER_WORD)
    assert tokens(paper, "evaluate_capability", task="lambada") == 5 * items
    assert tokens(paper, "prepare_task") == 0


def test_tokens_of_states_by_hand(paper, embedded):
    mamba = {"model": "mamba2-130m"}
    size = table()["state-spaces/mamba2-130m"]
    # 7 scores and 5 seeds at 5 sparsities
    assert tokens(paper, "evaluate_state", size, **mamba) == (7 + 5) * 5 * 65536
    # 1 to 8 blocks long, dense and under 3 scores and 5 seeds at 3 sparsities
    assert tokens(paper, "evaluate_state_lengths", size, **mamba) == 4 * (1 + 8 * 3) * 65536
    # Zamba2 has 4,096 positions: 8 blocks are too long.
    zamba = table()["Zyphra/Zamba2-1.2B"]
    zamba_tokens = tokens(paper, "evaluate_state_lengths", zamba, model="zamba2-1.2b")
    assert zamba_tokens == 3 * (1 + 8 * 3) * 65536
    # All text is one batch: sums, two functions in order at 5 sparsities, Taylor, and what is
    # measured of memory, three methods on one block and two.
    assert tokens(paper, "score_state", size, **mamba) == (1 + 2 * 5 + 1) * 131072 + 9 * 1024
    # Where channels influence one another, each of the 128 is left out of the scans once.
    job = Job("score_state", {**WIKI, **mamba})
    plain, measured = (
        sum(part.stepped for part in work(paper, job, replace(size, interacts=interacts)))
        for interacts in (False, True)
    )
    assert measured - plain == 128 * 131072
    # In batches, a pass in order goes up to each layer in turn: half of the model on average.
    few = paper.model_copy(update={"text": paper.text.model_copy(update={"batch_tokens": 4096})})
    found = tokens(few, "score_state", size, **mamba)
    assert found == 2 * 131072 + 2 * 5 * 131072 * 25 / 2 + 9 * 1024
    # 2 scores, 2 sparsities, 3 windows, and a dynamic rule on twice the text; states are stepped
    # once to be read, twice to forget.
    job = Job("evaluate_state_windowed", {**WIKI, **mamba, "choice": "oracle"})
    parts = work(paper, job, size)
    assert [part.tokens for part in parts] == 2 * [2 * 2 * (3 + 2) * 65536]
    assert [part.stepped / part.tokens for part in parts] == [1, 2]
    # Causal rules also run the text before every block, once.
    job = Job("evaluate_state_windowed", {**WIKI, **mamba, "choice": "causal"})
    parts = work(paper, job, size)
    assert [part.tokens for part in parts] == [*2 * [2 * 2 * 4 * 65536], 65536]
    assert [part.stepped / part.tokens for part in parts] == [1, 2, 1]


def test_operations_and_bytes_by_hand(paper):
    size = table()["facebook/opt-1.3b"]
    job = Job("evaluate_dense", {"model": "opt-1.3b", "corpus": "c4"})
    found = cost(paper, job, size, "cuda")
    # A token meets each matrix entry once, and 512 earlier tokens in 24 layers of width 2,048.
    per_token = 2 * size.multiplied + 24 * 4 * 512 * 2048
    assert found.flops == 131072 * per_token
    assert found.weights == 2 * size.parameters
    # Weights, CUDA's context, logits, and one layer's activations of 8 blocks, all in bfloat16.
    beside = 8192 * 2 * (50272 + 4 * 2048 + 2 * 8192)
    assert found.gpu == 2 * size.parameters + 0.6e9 + beside
    gradient = Job("cache_activations", {"model": "opt-1.3b", "corpus": "wikitext2"})
    per_token = 2 * size.multiplied + 24 * 4 * 512 * 2048
    assert cost(paper, gradient, size, "cuda").flops == 3 * 131072 * per_token


def test_states_that_are_stepped_move_bytes(paper):
    size = table()["state-spaces/mamba2-1.3b"]
    names = {"model": "mamba2-1.3b", "corpus": "c4", "choice": "oracle"}
    found = cost(paper, Job("evaluate_state_windowed", names), size, "cuda")
    stepped = 2 * 2 * (3 + 2) * 65536 * (1 + 2)
    assert found.bytes == stepped * 48 * 64 * 64 * 128 * 7 * 4
    speed = plan.Speed(1e12, 1e12, "")
    assert found.seconds(speed) == pytest.approx(
        plan.START_S + 2 * size.parameters / 1e9 + found.flops / 1e12 + found.bytes / 1e12
    )


def test_ablations_are_measured_in_float32(paper):
    names = {"model": "qwen2.5-1.5b", "corpus": "wikitext2"}
    jobs_of = [Job(rule, names) for rule in ("correlate_size_impact", "evaluate_dense")]
    ablated, dense = (cost(paper, job, QWEN, "cuda") for job in jobs_of)
    assert ablated.weights == 4 * QWEN.parameters == 2 * dense.weights
    elsewhere = Job("correlate_size_impact", {**names, "corpus": "c4"})
    assert cost(paper, elsewhere, QWEN, "cuda").weights == dense.weights


def test_ablations_take_whole_groups_of_documents(paper):
    """Sixteen groups of 8 blocks: 8,193 tokens take two of them."""
    more = paper.model_copy(update={"ablation": paper.ablation.model_copy(update={"tokens": 8193})})
    assert tokens(more, "correlate_size_impact") == 2 * tokens(paper, "correlate_size_impact")


def test_a_cpu_has_all_in_main_memory(paper):
    size = table()["facebook/opt-2.7b"]
    job = Job("evaluate_dense", {"model": "opt-2.7b", "corpus": "c4"})
    on_cpu, on_gpu = (cost(paper, job, size, kind) for kind in ("cpu", "cuda"))
    assert on_cpu.gpu == 0
    peak = on_gpu.gpu - _CONTEXT
    assert on_cpu.memory == _BASE + peak
    assert on_gpu.memory == _BASE_BESIDE_GPU + on_gpu.weights


def test_the_embedded_study_fits_where_it_was_measured(embedded):
    """SmolLM2's resident memory on a CPU, and the time of windows."""
    llama = Size(
        parameters=134515008, multiplied=134479872, d_model=576, vocabulary=49152,
        positions=8192, attention_layers=30, attention_width=576, ffn_layers=30, n_units=1536,
        gated=True,
    )  # fmt: skip
    names = {"model": "smollm2-135m", "corpus": "wiki"}
    names |= {"choice": "causal", "task": "last-word"}
    peaks = {
        "cache_activations": 1.78e9,
        "evaluate_static": 1.26e9,
        "evaluate_windowed": 1.35e9,
        "evaluate_capability": 0.98e9,
    }
    for rule, measured in peaks.items():
        found = cost(embedded, Job(rule, names), llama, "cpu")
        assert measured < found.memory < 2 * measured
    # 175 s and 149 s of two processes on two busy cores, without 5 s of start, with W = 64 too
    dial = embedded.grid.windowed.model_copy(update={"windows": [1, 4, 16, 64, "sequence"]})
    grid = embedded.grid.model_copy(update={"windowed": dial})
    embedded = embedded.model_copy(update={"grid": grid})
    for choice, measured in (("causal", 175), ("oracle", 149)):
        job = Job("evaluate_windowed", {**names, "choice": choice})
        seconds = cost(embedded, job, llama, "cpu").seconds(plan.SPEEDS["cpu"])
        assert measured / 2 < seconds < measured * 2


def test_resources_are_zero_where_the_size_is_unknown(paper):
    job = Job("evaluate_dense", {"model": "opt-2.7b", "corpus": "c4"})
    assert set(resources(paper, job, None, "cuda").values()) == {0}
    found = resources(paper, job, table()["facebook/opt-2.7b"], "cuda")
    assert found["gpu_mb"] > 5300
    assert found["mem_mb"] > 5300
    assert found["runtime"] >= 1


def test_converting_takes_a_model_twice(paper):
    size = table()["state-spaces/mamba2-2.7b"]
    converted = cost(paper, Job("prepare_model", {"model": "mamba2-2.7b"}), size, "cuda")
    plain = cost(paper, Job("prepare_model", {"model": "opt-2.7b"}), size, "cuda")
    assert converted.memory - plain.memory == 8 * size.parameters


def test_only_restricts_the_jobs(paper):
    alone = paper.model_copy(update={"only": ["opt-350m"]})
    found = jobs(alone)
    assert {job.model for job in found} == {"opt-350m", None}
    assert "sort_channels" not in {job.rule for job in found}
    assert "draw_phantom" not in {job.rule for job in found}


def test_nothing_heavy_is_imported():
    """The workflow imports it at every start."""
    code = (
        "import sys, keepset.plan, keepset.plan.sizes;"
        "print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
