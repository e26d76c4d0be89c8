"""Bounds against scipy, a journal that is gone on with, and text that cannot decide."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from keepset.errors import ConfigError, TextError
from keepset.kinds import find_sites
from keepset.measure.runner import Runner
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.slim.quality import Meter, Part, Quality, need_enough
from keepset.slim.settings import Budget, parse_share
from keepset.text import Encoded

BLOCKS = torch.randint(4, 260, (9, 8), generator=torch.Generator().manual_seed(1))
ITEMS = [Encoded(row.tolist(), 6) for row in BLOCKS]
RECIPE = Recipe({"ffn.000": Rule("magnitude", 0.75, 1)})


def part(documents=None, items=()):
    numbers = torch.arange(len(BLOCKS)) if documents is None else torch.tensor(documents)
    return Part("report", BLOCKS, numbers, items)


@pytest.fixture
def meter(tiny_model, tmp_path):
    model = tiny_model("llama")
    return Meter(Runner(model, find_sites(model)), tmp_path, {"model": "m"})


def test_bounds_of_perplexity_are_one_sided_t_bounds(meter):
    quality = meter.quality(RECIPE, part(), 0.95)
    nll = [np.array(meter.measure(one, part())["nll"]) for one in (None, RECIPE)]
    change = (nll[1] - nll[0]) / 7
    low, high = stats.t.interval(0.9, 8, change.mean(), stats.sem(change))
    expected = [math.exp(value) for value in (change.mean(), low, high)]
    assert [quality.ratio, quality.ratio_low, quality.ratio_high] == pytest.approx(expected)


def test_with_few_documents_blocks_are_the_sample(meter):
    one = meter.quality(RECIPE, part([0] * 9), 0.95)
    assert one == meter.quality(RECIPE, part(), 0.95)
    assert not part([0] * 9).by_document
    assert part().by_document


def test_points_are_of_the_same_items(meter):
    quality = meter.quality(RECIPE, part(items=ITEMS), 0.95)
    right = [np.array(meter.measure(one, part(items=ITEMS))["correct"]) for one in (None, RECIPE)]
    assert quality.lost == pytest.approx(100 * (right[0].mean() - right[1].mean()))
    assert quality.lost_low <= quality.lost <= quality.lost_high


def test_what_was_measured_is_remembered_on_disk(meter, tmp_path, monkeypatch):
    first = meter.measure(RECIPE, part(items=ITEMS))
    (journal,) = tmp_path.glob("trials-*.jsonl")
    # The run was stopped while a line was written.
    journal.write_text(journal.read_text() + '{"key": "half')
    again = Meter(meter.runner, tmp_path, {"model": "m"})
    monkeypatch.setattr(meter.runner, "block_nll", None)
    assert again.measure(RECIPE, part(items=ITEMS)) == first
    assert again.remembered == 1
    monkeypatch.undo()
    again.measure(None, part())
    third = Meter(meter.runner, tmp_path, {"model": "m"})
    third.measure(None, part())
    assert third.remembered == 1


def test_recipes_that_differ_in_centres_are_two(meter):
    rule = {"ffn.000": Rule("centred", 0.75, 1)}
    near, far = (Recipe(rule, centres={"ffn.000": centre}) for centre in (0.0, 2.0))
    for recipe in (near, far):
        found = torch.tensor(meter.measure(recipe, part())["nll"], dtype=torch.float64)
        torch.testing.assert_close(found, meter.runner.block_nll(BLOCKS, recipe))


def test_another_owner_starts_a_journal_of_its_own(meter, tmp_path):
    meter.measure(RECIPE, part())
    other = Meter(meter.runner, tmp_path, {"model": "other"})
    other.measure(None, part())
    assert len(list(tmp_path.glob("trials-*.jsonl"))) == 2
    lines = [json.loads(line) for path in tmp_path.iterdir() for line in path.open()]
    assert len(lines) == 2


def test_a_budget_is_met_by_bounds_and_not_by_estimates():
    budget = Budget(0.03, 2.0)
    fine = Quality(1.01, 1.0, 1.03, 0.5, 0.0, 2.0)
    assert fine.within(budget)
    assert not Quality(1.01, 1.0, 1.031, 0.5, 0.0, 2.0).within(budget)
    assert not Quality(1.01, 1.0, 1.03, 0.5, 0.0, 2.1).within(budget)
    assert not Quality(1.01, 1.0, math.nan, 0.5, 0.0, 2.0).within(budget)
    assert Quality(9.0, 8.0, 10.0, 0.5, 0.0, 2.0).within(Budget(None, 2.0))


def test_text_that_cannot_decide_is_refused():
    short = Part("report", BLOCKS[:5], torch.arange(5))
    with pytest.raises(TextError, match="5 blocks are left to report on, and 8 are needed"):
        need_enough(short, Budget())
    with pytest.raises(TextError, match=r"9 items .* 133 are needed there, so give 266 in all"):
        need_enough(part(items=ITEMS), Budget(0.03, 2.0))
    need_enough(part(items=ITEMS), Budget(0.03, 50.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perplexity": None}, "give --budget"),
        ({"perplexity": 0.0}, "--budget: a rise of perplexity above 0"),
        ({"points": -1.0}, "--points: points of accuracy above 0"),
        ({"confidence": 0.5}, "--confidence: between"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Budget(**options)


def test_shares_are_read():
    assert parse_share("3%") == pytest.approx(0.03)
    assert parse_share("0.1") == 0.1
    with pytest.raises(ConfigError, match="write a share, such as 3% or"):
        parse_share("three")
