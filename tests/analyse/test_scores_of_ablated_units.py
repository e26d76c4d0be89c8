from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from keepset.analyse.correlation import correlation_table
from keepset.rules.kinds import KINDS


def ablations(seed=0) -> pd.DataFrame:
    """The `ablations` table of one model: 16 neurons in each of two layers."""
    rng = np.random.default_rng(seed)
    names = ["magnitude", "output", "taylor", "weight", "magnitude_other", "taylor_other"]
    table = pd.DataFrame(rng.exponential(size=(32, len(names))), columns=names)
    loss = table["taylor"] * rng.choice([-1, 1], 32) * rng.lognormal(0, 0.3, 32)
    return table.assign(layer=np.repeat([0, 1], 16), loss=loss, n_documents=3, n_tokens=256)


def test_every_score_stands_against_the_size_of_the_loss_change():
    ablated = ablations()
    identity = {"model": "m", "corpus": "wiki"}
    table = correlation_table(KINDS["ffn"], [], 0.95, identity, ablated)
    pooled = table[table["layer"] == -1].set_index("size")
    assert set(pooled["impact"]) == {"loss"}
    for score in ("magnitude", "output", "taylor", "weight", "magnitude_other", "taylor_other"):
        layers = [
            scipy_stats.spearmanr(units[score], units["loss"].abs()).statistic
            for _, units in ablated.groupby("layer")
        ]
        assert pooled.loc[score, "spearman"] == pytest.approx(np.mean(layers), abs=1e-12)
    assert (pooled["ci_low"] < pooled["spearman"]).all()


def test_scores_that_are_not_known_are_left_out():
    ablated = ablations().assign(taylor_other=np.nan).drop(columns="taylor")
    table = correlation_table(KINDS["ffn"], [], 0.95, {"model": "m"}, ablated)
    assert set(table["size"]) == {"magnitude", "output", "weight", "magnitude_other"}
