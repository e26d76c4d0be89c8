import pytest

from keepset.settings import Capability, Dial, DynamicGrid, State, StaticGrid, grid


def test_random_runs_once_per_seed_and_the_rest_once():
    rules = grid.static_rules(
        StaticGrid(scores=["magnitude", "random"], sparsities=[0.5, 0.9]), [7, 8, 9]
    )
    assert len(rules) == 2 + 3 * 2
    assert {rule.seed for rule in rules if rule.score == "random"} == {7, 8, 9}
    assert {rule.method for rule in rules} == {"static"}


def test_dynamic_is_a_window_of_one():
    rules = grid.dynamic_rules(DynamicGrid(scores=["impact"], sparsities=[0.5]), [0])
    assert [(rule.window, rule.method) for rule in rules] == [(1, "dynamic")]


def test_the_oracle_at_one_token_is_left_to_dynamic():
    dial = Dial(
        scores=["magnitude"],
        sparsities=[0.5],
        windows=[1, 2, "sequence"],
        choices=["oracle", "causal"],
    )
    oracle = grid.windowed_rules(dial, "oracle", [0])
    causal = grid.windowed_rules(dial, "causal", [0])
    assert [rule.window for rule in oracle] == [2, "sequence"]
    assert [rule.window for rule in causal] == [1, 2, "sequence"]


def test_capability_compares_every_method():
    rules = grid.capability_rules(Capability(corpus="wiki"), ["oracle", "causal"])
    assert rules[0] is None
    assert [rule.method for rule in rules[1:]] == ["static", "dynamic", "windowed", "windowed"]


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
        tasks = grid.state_capability_rules(chosen, seeds)
        assert random_seeds(tasks) == expected
        lengths = grid.state_length_rules(chosen, seeds)
        assert random_seeds(lengths) == expected
        assert {rule.sparsity for rule in lengths} == {0.9}
        assert len(lengths) == 1 + len(expected)


def test_lengths_are_of_sparsities_that_tasks_have():
    with pytest.raises(ValueError, match=r"length_sparsities: not in capability.sparsities"):
        State(**{**state().model_dump(), "length_sparsities": [0.4]})
