"""Shares of a budget against all combinations, and against cases worked by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from keepset.slim.budgets import cheapest, equal

SHARES = [0.0, 0.25, 0.5, 0.75]


def test_equal_shares():
    assert equal({"a": 1, "b": 9}, 0.4) == {"a": 0.4, "b": 0.4}


def test_the_next_step_is_the_cheapest_per_byte():
    # Per byte: a's first step costs 1 / 25, b's 2 / 50, a's second 3 / 25.
    costs = {"a": [0.0, 1.0, 4.0, 9.0], "b": [0.0, 2.0, 8.0, 18.0]}
    sizes = {"a": 100, "b": 200}
    assert cheapest(costs, SHARES, sizes, 75) == {"a": 0.25, "b": 0.25}
    assert cheapest(costs, SHARES, sizes, 76) == {"a": 0.5, "b": 0.25}
    assert cheapest(costs, SHARES, sizes, 0) == {"a": 0.0, "b": 0.0}


def test_a_step_that_costs_less_after_a_dear_one_is_taken_with_it():
    # From 0 to 0.25 costs 3, from there to 0.5 only 1 more: both together 2 per step.
    costs = {"a": [0.0, 3.0, 4.0, 50.0], "b": [0.0, 2.5, 5.5, 9.0]}
    assert cheapest(costs, SHARES, {"a": 100, "b": 100}, 50) == {"a": 0.5, "b": 0.0}


def test_noise_that_falls_is_no_gain():
    costs = {"a": [0.0, 0.5, 0.2, 9.0], "b": [0.0, 0.1, 0.2, 0.3]}
    assert cheapest(costs, SHARES, {"a": 100, "b": 100}, 75)["b"] == 0.75


@pytest.mark.parametrize("seed", range(6))
def test_no_combination_that_saves_as_much_costs_less(seed):
    rng = np.random.default_rng(seed)
    keys = "abc"
    # Convex costs, for which steps are never regretted.
    steps = {key: np.sort(rng.random(3)) for key in keys}
    costs = {key: [0.0, *np.cumsum(step)] for key, step in steps.items()}
    sizes = dict.fromkeys(keys, 100)
    for target in (50, 100, 150):
        chosen = cheapest(costs, SHARES, sizes, target)
        spent = sum(costs[key][SHARES.index(share)] for key, share in chosen.items())
        saved = sum(100 * share for share in chosen.values())
        assert saved >= target
        for shares in product(range(4), repeat=3):
            if sum(100 * SHARES[place] for place in shares) >= saved:
                other = sum(costs[key][place] for key, place in zip(keys, shares, strict=True))
                assert spent <= other + 1e-12
