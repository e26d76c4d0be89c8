from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from keepset import plan, settings
from keepset.plan import sizes
from keepset.rules.kinds import KINDS, Evaluation
from keepset.settings import Capability, State, grid, outputs
from keepset.settings.steps import all_steps

ROOT = Path(__file__).parents[2]


def test_random_runs_once_per_seed_and_the_rest_once():
    static = {"scores": ["magnitude", "random"], "sparsities": [0.5, 0.9]}
    rules = grid.part_rules("ffn", "static", static, [7, 8, 9])
    assert len(rules) == 2 + 3 * 2
    assert {rule.seed for rule in rules if rule.score == "random"} == {7, 8, 9}
    assert {rule.method for rule in rules} == {"static"}


def test_dynamic_is_a_window_of_one():
    dynamic = {"scores": ["impact"], "sparsities": [0.5]}
    rules = grid.part_rules("ffn", "dynamic", dynamic, [0])
    assert [(rule.window, rule.method) for rule in rules] == [(1, "dynamic")]


def test_the_oracle_at_one_token_is_left_to_dynamic():
    dial = {"scores": ["impact"], "sparsities": [0.5], "windows": [1, 2, "sequence"]}
    oracle = grid.part_rules("ffn", "windowed", dial, [0], "oracle")
    causal = grid.part_rules("ffn", "windowed", dial, [0], "causal")
    assert [rule.window for rule in oracle] == [2, "sequence"]
    assert [rule.window for rule in causal] == [1, 2, "sequence"]
    # States have no dynamic part: W = 1 is on their dial, of each access.
    states = grid.part_rules("state", "windowed", {**dial, "access": ["write"]}, [0], "oracle")
    assert [(rule.window, rule.access) for rule in states] == [
        (window, "write") for window in (1, 2, "sequence")
    ]
    assert {rule.access for rule in grid.part_rules("state", "windowed", dial, [0])} == {
        "read",
        "write",
    }


def test_capability_compares_every_method():
    tasks = {"capability": Capability(corpus="wiki").model_dump(), "choices": ["oracle", "causal"]}
    rules = grid.task_rules("ffn", tasks, [0])
    assert [rule.method for rule in rules] == ["static", "dynamic", "windowed", "windowed"]


def test_a_new_kind_runs_under_the_grid(monkeypatch):
    """A kind without a section of its own is named nowhere but in its entry."""
    made_up = replace(
        KINDS["ffn"],
        name="attention",
        correlation="correlation-attention",
        evaluations=(
            Evaluation("evaluate_attention", "static", "attention", "attention of {model}"),
            Evaluation("hold_attention", "windowed", "attention-{choice}", "{model} {choice}"),
        ),
    )
    monkeypatch.setitem(KINDS, "attention", made_up)
    config = settings.load(ROOT / "config.yaml")
    model = config.models["smollm2-135m"].model_copy(update={"sites": ["ffn", "attention"]})
    config = config.model_copy(update={"models": {"m": model}, "specimens": None})
    assert config.studied_kinds("m", "wiki") == ["ffn", "attention"]
    assert outputs.perplexity_parts(config, "m", "wiki")[-3:] == [
        *("attention", "attention-oracle", "attention-causal")
    ]
    assert "m/wiki/correlation-attention.parquet" in outputs.correlations(config)
    assert outputs.static_sets(config, "m") == ["m/wiki/activations.safetensors"] * 2
    names = {"model": "m", "corpus": "wiki"}
    step = all_steps()["evaluate_attention"]
    rules = grid.part_rules(**step.given(config, names)["rules"])
    assert {rule.site for rule in rules} == {"attention"}
    jobs = [job for job in plan.jobs(config) if job.wildcards.get("corpus") == "wiki"]
    planned = Counter(job.rule for job in jobs)
    assert planned["hold_attention"] == 2
    assert planned["cache_activations"] == 1
    size = next(iter(sizes.table().values()))
    (work,) = plan.work(config, plan.Job("evaluate_attention", names), size)
    assert work.tokens == len(rules) * config.evaluation_tokens("m")
    kinds = all_steps()["evaluate_capability"].given(config, {**names, "task": "recall"})["kinds"]
    assert list(kinds) == ["ffn", "attention"]


def state(**changes):
    return State(
        static={"scores": ["ghost", "random"], "sparsities": [0.5, 0.9]},
        windowed={
            "scores": ["impact"],
            "sparsities": [0.9],
            "windows": [1],
            "choices": ["oracle"],
            "access": ["read"],
        },
        capability={"scores": ["ghost", "random"], "sparsities": [0.5, 0.9], **changes},
        length_sparsities=[0.9],
        prune={"score": "ghost"},
    )


def test_tasks_and_lengths_take_fewer_seeds_where_it_says_so():
    seeds = [7, 8, 9]

    def random_seeds(rules):
        return {rule.seed for rule in rules if rule.score == "random"}

    for chosen, expected in ((state(), {7, 8, 9}), (state(random_seeds=2), {7, 8})):
        tasks = grid.task_rules("state", {"state": chosen.model_dump()}, seeds)
        assert random_seeds(tasks) == expected
        lengths = grid.length_rules("state", chosen.model_dump(), seeds)
        assert random_seeds(lengths) == expected
        assert {rule.sparsity for rule in lengths} == {0.9}
        assert len(lengths) == 1 + len(expected)


def test_lengths_are_of_sparsities_that_tasks_have():
    with pytest.raises(ValueError, match=r"length_sparsities: not in capability.sparsities"):
        State(**{**state().model_dump(), "length_sparsities": [0.4]})


def test_correlations_are_read_model_by_model():
    config = settings.load(ROOT / "config.yaml")
    tables = [path for path in outputs.correlations(config) if "/wiki/" in path]
    models = list(dict.fromkeys(path.split("/")[0] for path in tables))
    assert models == list(config.active_models())
    assert tables == sorted(tables, key=lambda path: models.index(path.split("/")[0]))
