from __future__ import annotations

import pandas as pd
import pytest

import made_up_state
from keepset.analyse import quadrants


def channels(magnitude, energy, layers=None) -> pd.DataFrame:
    n = len(magnitude)
    cell = {"study": "s", "model": "m", "origin": "specimen", "corpus": "wiki"}
    places = {"layer": layers or [0] * n, "group": 0, "channel": range(n), "left_out": -1}
    return pd.DataFrame({**cell, **places, "magnitude": magnitude, "energy": energy})


def test_names_of_the_four():
    table = quadrants.with_quadrants(channels([1.0, 9.0, 2.0, 8.0], [9.0, 8.0, 1.0, 2.0]))
    assert table["quadrant"].tolist() == ["phantom", "strong", "idle", "corporeal"]
    assert table["weight_median"].tolist() == [5.0] * 4


def test_medians_are_the_models_own():
    one = channels([1.0, 2.0], [1.0, 2.0])
    both = pd.concat([one, one.assign(model="n", magnitude=[100.0, 200.0])])
    table = quadrants.with_quadrants(both)
    assert table["quadrant"].tolist() == ["idle", "strong"] * 2


@pytest.mark.parametrize(
    ("energy", "parted"),
    [([1.0, 2, 3, 4], 0.0), ([4.0, 3, 2, 1], 1.0), ([1.0, 4, 2, 3], 0.5)],
)
def test_rankings_part(energy, parted):
    table = quadrants.with_quadrants(channels([1.0, 2.0, 3.0, 4.0], energy))
    assert quadrants.shares(table)["disagreement"].tolist() == [parted]


def test_uniform_keeps_half_of_every_layer():
    # Over the model both keep the second layer; within each layer they keep opposite channels.
    table = channels([1.0, 2, 11, 12], [2.0, 1, 12, 11], layers=[0, 0, 1, 1])
    row = quadrants.shares(quadrants.with_quadrants(table)).iloc[0]
    assert (row["disagreement"], row["disagreement_uniform"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("magnitude", "energy", "share"),
    [
        ([1.0] * 3, [1.0] * 3, 0.0),  # at the median is low, in both
        ([3.0, 2, 1], [1.0, 2, 3], 2 / 3),
        ([2.0, 1, 1, 1], [1.0, 1, 1, 2], 0.5),
    ],
)
def test_disagreement_is_phantom_and_corporeal_together(magnitude, energy, share):
    """It was taken by another definition, the half that energy keeps, ties to the first."""
    row = quadrants.shares(quadrants.with_quadrants(channels(magnitude, energy))).iloc[0]
    assert row["disagreement"] == pytest.approx(share)
    assert row["phantom"] + row["corporeal"] == pytest.approx(share)


def test_only_scores_on_all_text_are_sorted():
    whole = channels([1.0, 9.0, 2.0, 8.0], [9.0, 8.0, 1.0, 2.0])
    without = whole.assign(left_out=0, energy=[1.0, 2.0, 9.0, 8.0])
    table = quadrants.with_quadrants(pd.concat([whole, without]))
    assert table["quadrant"].tolist() == ["phantom", "strong", "idle", "corporeal"]
    assert quadrants.shares(table)["n_channels"].tolist() == [4]


def test_shares_add_up():
    table = quadrants.with_quadrants(made_up_state.channels(["mamba2", "hybrid"]))
    found = quadrants.shares(table)
    assert found["model"].tolist() == ["mamba2", "hybrid"]
    assert found[list(quadrants.QUADRANTS)].sum(axis=1).to_numpy() == pytest.approx(1)
    # With an even number of distinct values, as many are phantom as corporeal, and the halves
    # that two rankings keep differ by exactly those.
    assert found["phantom"].to_numpy() == pytest.approx(found["corporeal"].to_numpy())
    assert found["disagreement"].to_numpy() == pytest.approx(2 * found["phantom"].to_numpy())
    assert (found["disagreement"] > 0.5).all()  # the made-up energies fall with weight


def test_nothing():
    empty = quadrants.with_quadrants(pd.DataFrame())
    assert not len(empty)
    assert not len(quadrants.shares(empty))
