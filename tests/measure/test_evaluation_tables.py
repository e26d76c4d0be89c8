"""Result tables: which blocks a rule covers, whose document they are, and runs with noise."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from keepset.calibrate import activations
from keepset.calibrate.sets import RankedSets
from keepset.errors import ModelError
from keepset.measure.runner import Runner
from keepset.measure.tables import perplexity_table, rounding_table
from keepset.rules.rule import Rule
from keepset.sites.ffn import find_ffn_sites
from keepset.text import Passages

IDENTITY = {"study": "s", "model": "m", "origin": "o", "corpus": "c"}
DYNAMIC = [Rule("magnitude", 0.5, 1), Rule("impact", 0.8, 1)]
OTHERS = [
    Rule("magnitude", 0.5, 4),
    Rule("magnitude", 0.5, 4, "causal"),
    Rule("magnitude", 0.5, 1, "causal"),
    Rule("magnitude", 0.5, "corpus"),
]


def ids(seed, rows=5):
    return torch.randint(4, 260, (rows, 12), generator=torch.Generator().manual_seed(seed))


def passages(n_predicted=11):
    return Passages(
        evaluation=ids(1),
        document=torch.tensor([0, 1, 2, 0, 1]),
        lead_in=ids(2),
        n_tokens=torch.full((5,), n_predicted),
        n_words=torch.arange(5),
        n_bytes=torch.arange(5, 10),
        n_core=3,
    )


@pytest.fixture(scope="module")
def run(tiny_model):
    model = tiny_model("llama")
    sites = find_ffn_sites(model)
    moments = activations.collect_moments(model, sites, ids(3), batch_tokens=60)
    return Runner(model, sites, keep_sets=RankedSets(moments), batch_tokens=36)


def table_of(run, rules, blocks=None):
    return perplexity_table(run, blocks or passages(), rules, IDENTITY, "toy")


def test_dense_and_dynamic_rules_run_on_all_blocks(run):
    table = table_of(run, [None, *DYNAMIC, *OTHERS])
    for method, rows in table.groupby("method"):
        n_blocks = 5 if method in ("dense", "dynamic") else 3
        for _, one in rows.groupby(["score", "sparsity", "window", "choice"]):
            assert one["block"].tolist() == list(range(n_blocks))
            assert one["document"].tolist() == [0, 1, 2, 0, 1][:n_blocks]
            assert one["n_bytes"].tolist() == list(range(5, 5 + n_blocks))
    assert {table[name].dtype for name in ("block", "document", "n_tokens")} == {np.dtype("int64")}
    columns = list(table.columns)
    assert columns[columns.index("block") + 1] == "document"


def test_rules_on_the_core_do_not_feel_the_other_blocks(run):
    core = replace(
        passages(),
        **{
            name: getattr(passages(), name)[:3]
            for name in ("evaluation", "document", "lead_in", "n_tokens", "n_words", "n_bytes")
        },
    )
    for rule in OTHERS:
        pd.testing.assert_frame_equal(table_of(run, [rule]), table_of(run, [rule], core))


def test_causal_rules_use_the_lead_in_of_each_block(run):
    nll = table_of(run, OTHERS[1:2])["nll"]
    changed = ids(2)
    changed[1] = ids(4)[1]
    other = table_of(run, OTHERS[1:2], replace(passages(), lead_in=changed))["nll"]
    assert (nll != other).tolist() == [False, True, False]


def test_draws_are_seeded_runs_of_the_same_rules(run):
    plain = table_of(run, DYNAMIC)
    table = rounding_table(run, passages(), DYNAMIC, IDENTITY, "toy", draws=3, seed=7)
    assert list(table.columns) == [*plain.columns, "draw"]
    plain = plain[plain["block"] < passages().n_core].reset_index(drop=True)
    assert len(table) == 3 * len(plain)
    keys = [name for name in plain.columns if name != "nll"]
    for draw in (1, 2, 3):
        part = table[table["draw"] == draw].reset_index(drop=True)
        pd.testing.assert_frame_equal(part[keys], plain[keys])
        assert (part["nll"] != plain["nll"]).any()
        np.testing.assert_allclose(part["nll"], plain["nll"], rtol=1e-2)
    assert table.groupby("draw")["nll"].sum().nunique() == 3
    again = rounding_table(run, passages(), DYNAMIC, IDENTITY, "toy", draws=3, seed=7)
    pd.testing.assert_frame_equal(table, again)
    other = rounding_table(run, passages(), DYNAMIC, IDENTITY, "toy", draws=3, seed=8)
    assert (table["nll"] != other["nll"]).any()


@pytest.mark.parametrize(("tokens", "n_blocks"), [(1, 1), (12, 1), (13, 2), (36, 3), (60, 3)])
def test_draws_on_a_part_of_the_text_are_those_of_its_first_blocks(run, tokens, n_blocks):
    words = {"draws": 2, "seed": 7}
    whole = rounding_table(run, passages(), DYNAMIC, IDENTITY, "toy", **words)
    part = rounding_table(run, passages(), DYNAMIC, IDENTITY, "toy", tokens=tokens, **words)
    expected = whole[whole["block"] < n_blocks].reset_index(drop=True)
    keys = [name for name in whole.columns if name != "nll"]
    pd.testing.assert_frame_equal(part[keys], expected[keys])
    first = part["draw"] == 1
    # Noise is drawn batch by batch: three blocks are the first batch of every draw.
    if n_blocks == 3:
        pd.testing.assert_series_equal(part.loc[first, "nll"], expected.loc[first, "nll"])


def test_no_draws_give_an_empty_table_with_its_types(run):
    for rules, draws in ((DYNAMIC, 0), ([], 3)):
        table = rounding_table(run, passages(), rules, IDENTITY, "toy", draws=draws, seed=7)
        assert len(table) == 0
        assert list(table.columns) == [*table_of(run, DYNAMIC).columns, "draw"]
        assert table["draw"].dtype == table["document"].dtype == np.dtype("int64")


def test_blocks_that_were_counted_otherwise_are_refused(run):
    with pytest.raises(ModelError, match="not counted for a model with no BOS token"):
        table_of(run, [None], passages(12))
    with_bos = Runner(run.model, run.sites, bos=1)
    with pytest.raises(ModelError, match="not counted for a model with a BOS token"):
        table_of(with_bos, [None])
    assert (table_of(with_bos, [None], passages(12))["n_tokens"] == 12).all()
