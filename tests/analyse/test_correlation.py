from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from keepset.analyse.correlation import correlation_table
from keepset.errors import KeepsetError
from keepset.rules.kinds import KINDS

IDENTITY = {"study": "s", "model": "m", "corpus": "c"}
GROUPS = 6


def units_of(layers, per_layer, seed=0, groups=GROUPS):
    """Units whose mean |h| is that of `groups` groups of documents, with and without each."""
    rng = np.random.default_rng(seed)
    level = rng.exponential(size=layers * per_layer)
    by_group = level * rng.lognormal(0, 0.5, size=(groups, layers * per_layer))
    weight = level + rng.normal(size=len(level))
    for left_out in range(-1, groups if groups > 1 else 0):
        kept = [group for group in range(groups) if group != left_out]
        yield pd.DataFrame(
            {
                "layer": np.repeat(range(layers), per_layer),
                "unit": np.tile(range(per_layer), layers),
                "magnitude": by_group[kept].mean(axis=0),
                "weight": weight,
                "left_out": left_out,
                "n_documents": 40,
            }
        )


def table_of(*args, **options):
    return correlation_table(KINDS["ffn"], units_of(*args, **options), 0.95, IDENTITY)


def spearmans(layers, per_layer):
    """left_out -> coefficients by layer, by scipy."""
    return {
        int(part["left_out"].iloc[0]): np.array(
            [
                scipy_stats.spearmanr(rows["magnitude"], rows["weight"]).statistic
                for _, rows in part.groupby("layer")
            ]
        )
        for part in units_of(layers, per_layer)
    }


def t_interval(whole, left_out):
    """Of a delete-one-group jackknife, written out."""
    n = len(left_out)
    error = math.sqrt((n - 1) / n * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    half = scipy_stats.t.ppf(0.975, n - 1) * error
    return [whole - half, whole + half]


def test_coefficients_are_those_of_scipy_with_and_without_each_group():
    table = table_of(3, 40)
    assert list(table.columns[:6]) == [*IDENTITY, "site", "size", "impact"]
    assert set(table["impact"]) == {"weight"}
    assert set(table["n_documents"]) == {40}
    for left_out, expected in spearmans(3, 40).items():
        rows = table[table["left_out"] == left_out].set_index("layer")
        assert rows["spearman"].to_numpy() == pytest.approx([*expected, expected.mean()])
        assert rows["n_units"].tolist() == [40, 40, 40, 120]


def test_intervals_resample_text_with_layers_and_units_fixed():
    """They were t and bootstrap intervals over layers and units, which are all there are."""
    known = spearmans(3, 40)
    table = table_of(3, 40)
    whole = table[table["left_out"] == -1].set_index("layer")
    left_out = [known[group] for group in range(GROUPS)]
    for layer in range(3):
        expected = t_interval(known[-1][layer], [values[layer] for values in left_out])
        assert whole.loc[layer, ["ci_low", "ci_high"]].tolist() == pytest.approx(expected)
    expected = t_interval(known[-1].mean(), [values.mean() for values in left_out])
    assert whole.loc[-1, ["ci_low", "ci_high"]].tolist() == pytest.approx(expected)
    assert table.loc[table["left_out"] >= 0, ["ci_low", "ci_high"]].isna().all(axis=None)


def test_layers_that_disagree_do_not_widen_the_interval():
    """A depth profile is a fact about the model; text moves it little."""

    def both_ways():
        for part in units_of(8, 60):
            sign = np.where(part["layer"] % 2 == 0, 1, -1)
            yield part.assign(weight=sign * part["weight"])

    mixed = correlation_table(KINDS["ffn"], both_ways(), 0.95, {}).query("left_out == -1")
    layers, pooled = mixed[mixed["layer"] >= 0], mixed[mixed["layer"] == -1].iloc[0]
    assert layers["spearman"].std() > 0.5
    assert pooled["ci_high"] - pooled["ci_low"] < 0.1


def test_one_document_has_no_interval():
    table = table_of(2, 30, groups=1)
    assert set(table["left_out"]) == {-1}
    assert table["spearman"].notna().all()
    assert table[["ci_low", "ci_high"]].isna().all(axis=None)


def test_a_layer_whose_size_is_constant_is_not_in_the_mean():
    def parts():
        for part in units_of(3, 30):
            silent = part["layer"] == 1
            # Only some of the text wakes the layer: its coefficient is known on that alone.
            awake = part["left_out"] < 2
            yield part.assign(magnitude=part["magnitude"].mask(silent & ~awake, 0.0))

    table = correlation_table(KINDS["ffn"], parts(), 0.95, {}).query("left_out == -1")
    by_layer = table.set_index("layer")["spearman"]
    assert by_layer[-1] == pytest.approx((by_layer[0] + by_layer[2]) / 2)
    assert table.set_index("layer")["ci_low"].isna().to_dict() == {
        0: False,
        1: True,
        2: False,
        -1: False,
    }


def ablated_of(units, seed=4):
    rng = np.random.default_rng(seed)
    sample = units.iloc[::5].drop(columns="left_out")
    signs = rng.choice([-1, 1], size=len(sample))
    loss = signs * sample["magnitude"] * rng.lognormal(0, 0.4, size=len(sample))
    return sample.assign(loss=loss, n_documents=2)


def test_the_measured_change_is_taken_without_its_sign_and_units_are_left_out():
    """A change of the loss that is large matters, whichever way it goes."""
    units = list(units_of(2, 50))
    ablated = ablated_of(units[0])
    table = correlation_table(KINDS["ffn"], units, 0.95, IDENTITY, ablated).query(
        "impact == 'loss'"
    )
    assert set(table["left_out"]) == {-1}
    assert set(table["n_documents"]) == {2}
    layers = {}
    for layer, rows in ablated.groupby("layer"):
        x, y = rows["magnitude"].to_numpy(), rows["loss"].abs().to_numpy()
        rho = scipy_stats.spearmanr(x, y).statistic
        left_out = [
            scipy_stats.spearmanr(np.delete(x, at), np.delete(y, at)).statistic
            for at in range(len(x))
        ]
        row = table[table["layer"] == layer].iloc[0]
        assert row["spearman"] == pytest.approx(rho)
        assert row[["ci_low", "ci_high"]].tolist() == pytest.approx(t_interval(rho, left_out))
        layers[layer] = rho, left_out
    mean = np.mean([rho for rho, _ in layers.values()])
    left_out = [
        mean + (value - rho) / len(layers) for rho, values in layers.values() for value in values
    ]
    pooled = table[table["layer"] == -1].iloc[0]
    assert pooled["spearman"] == pytest.approx(mean)
    assert pooled[["ci_low", "ci_high"]].tolist() == pytest.approx(t_interval(mean, left_out))
    assert pooled["n_units"] == len(ablated)


def test_each_size_is_set_against_each_impact_that_was_taken():
    rng = np.random.default_rng(3)
    columns = ["magnitude", "controllability", "energy", "observability"]
    facts = {"layer": 0, "left_out": -1, "n_documents": 1}
    channels = pd.DataFrame(rng.random((40, 4)), columns=columns).assign(**facts)
    table = correlation_table(KINDS["state"], [channels], 0.95, {})
    pairs = table.loc[table["layer"] == 0, ["site", "size", "impact"]]
    assert pairs.to_numpy().tolist() == [
        ["state", size, impact] for size in columns[:2] for impact in ("ghost", "observability")
    ]
    assert correlation_table(KINDS["state"], [], 0.95, {}).empty
    assert correlation_table(KINDS["state"], [pd.DataFrame()], 0.95, {}).empty


def test_without_a_table_of_all_text():
    parts = [part for part in units_of(2, 20) if part["left_out"].iloc[0] >= 0]
    with pytest.raises(KeepsetError, match="on all text"):
        correlation_table(KINDS["ffn"], parts, 0.95, {})
