"""recipe.yaml: what is written is read again, and what is wrong is named."""

from __future__ import annotations

import pytest
import yaml

from keepset.errors import ConfigError
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule, describe
from keepset.settings.recipes import read_recipe, write_recipe

RECIPE = Recipe(
    {
        "input.000.q_proj": Rule("magnitude", 0.25, 1, site="input"),
        "input.001.q_proj": Rule("magnitude", 0.4, 1, site="input"),
        "ffn.000": Rule("impact", 0.5, 1),
        "ffn.001": Rule("centred", 0.5, 1),
        "state.000": Rule("ghost-uniform", 0.5, "corpus", site="state", access="both"),
    },
    thresholds={"ffn.000": 0.125},
    kept={"state.000": [[0, 2], [1, 3]]},
    centres={"ffn.001": -0.25},
    model={"name": "m", "model_type": "llama", "weights": "abc"},
    cut="def",
    bos=1,
    found={"budget": 0.03},
)


def test_what_is_written_is_read_again(tmp_path):
    write_recipe(RECIPE, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path) == RECIPE
    assert read_recipe(tmp_path / "recipe.yaml") == RECIPE


def test_sites_of_one_rule_stand_together(tmp_path):
    write_recipe(RECIPE, tmp_path / "recipe.yaml")
    content = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    shares = [part["sparsity"] for part in content["rules"]]
    assert shares[0] == {"input.000.q_proj": 0.25, "input.001.q_proj": 0.4}
    assert describe(RECIPE) == "recipe of 5 sites (input 2, ffn 2, state 1)"


def content(**changes):
    return {"keepset_recipe": 1, "rules": [], **changes}


def one(score="magnitude", window=1, **sparsity):
    shares = {key.replace("_", "."): value for key, value in sparsity.items()}
    return {"site": "ffn", "score": score, "window": window, "sparsity": shares}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[", "cannot be read"),
        ({"rules": []}, "no recipe"),
        (content(keepset_recipe=2), "version 2 of the format; this keepset reads version 1"),
        (content(model={"nam": "x"}), r"model\.nam: Extra inputs"),
        (content(rules=[one(window=8, ffn_0=0)]), r"rules\.0\.window"),
        (content(rules=[one(ffn_0=1)]), r"rules\.0\.sparsity\.ffn\.0"),
        (content(rules=[one(state_000=0.5)]), "a rule on sites of kind ffn cannot hold there"),
        (content(rules=2 * [one(ffn_0=0)]), r"ffn\.0 has two rules"),
        (content(rules=[one(window="corpus", ffn_0=0)]), r"ffn\.0: a static rule needs the units"),
        (content(rules=[one("magntiude", ffn_0=0.5)]), r"ffn\.0: score 'magntiude' is none of ffn"),
        (content(rules=[one("ghost", ffn_0=0.5)]), "use one of magnitude"),
        ("keepset_recipe: 1\nrules: []\nrules: []", r"rules stands twice\n.*line 3"),
        (
            content(rules=[{**one(ffn_0=0.5), "threshold": {"ffn.1": 1.0}}, one(ffn_1=0.5)]),
            r"rules\.0\.threshold: ffn\.1 has no sparsity in this rule",
        ),
        (
            content(rules=[{**one(ffn_0=0.5), "kept": {"ffn.1": [0]}}]),
            r"rules\.0\.kept: ffn\.1 has no sparsity in this rule",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, written, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(written if isinstance(written, str) else yaml.safe_dump(written))
    with pytest.raises(ConfigError, match=message) as error:
        read_recipe(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: this recipe cannot be read"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kept": {"ffn.000": [0]}}, "where no static rule is"),
        ({"thresholds": {"ffn.001": 1.0}}, "where no dynamic rule is"),
        ({"thresholds": {"ffn.000": float("nan")}}, "a number from 0, got nan"),
        ({"thresholds": {"ffn.000": float("inf")}}, "a number from 0, got inf"),
        ({"centres": {"ffn.000": 0.5}}, r"ffn\.000: a centre stands where no score is centred"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Recipe({"ffn.000": Rule("magnitude", 0.5, 1)}, **options)


@pytest.mark.parametrize("centre", [{}, {"ffn.000": float("nan")}])
def test_a_centred_score_needs_its_centre(centre):
    with pytest.raises(ConfigError, match=r"ffn\.000: score centred needs a centre"):
        Recipe({"ffn.000": Rule("centred", 0.5, 1)}, centres=centre)


def test_an_unknown_kind_of_site_is_named():
    with pytest.raises(ConfigError, match=r"fnn\.000: fnn is no kind of site; use one of ffn"):
        Recipe({"fnn.000": Rule("magnitude", 0.5, 1, site="fnn")})


def test_windows_are_no_part_of_a_recipe():
    with pytest.raises(ConfigError, match="not windowed"):
        Recipe({"ffn.000": Rule("magnitude", 0.5, 8)})
