from keepset import grid
from keepset.settings import Capability, Dial, DynamicGrid, StaticGrid


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
