from __future__ import annotations

import pandas as pd
import pytest

from keepset.analyse.claims import Evidence, traits
from keepset.errors import KeepsetError


@pytest.mark.parametrize(
    ("kind", "activation", "expected"),
    [
        ("opt", "relu", ("transformer", "relu")),
        ("llama", "silu", ("transformer", "swiglu")),
        ("gpt2", "gelu_new", ("transformer", "other")),
        ("mamba2", "silu", ("recurrent", "none")),
        ("zamba2", "gelu", ("hybrid", "other")),
        ("mpt", None, ("transformer", "other")),
    ],
)
def test_traits(kind, activation, expected):
    info = {"name": "x", "origin": "specimen", "model_type": kind, "activation": activation}
    found = traits(info, l1=True)
    assert (found["architecture"], found["ffn"]) == expected
    assert found["l1"]


def rows(**changes: object) -> pd.DataFrame:
    columns = {"study": "s", "model": "m", "origin": "specimen", "corpus": "c", "site": "ffn"}
    columns |= {"method": "static", "score": "random", "seed": 0, "sparsity": 0.9}
    columns |= {"window": "corpus", "choice": "none", "block": [0, 1], "nll": [1.0, 2.0]}
    return pd.DataFrame({**columns, "document": [0, 1], "n_tokens": [10, 20], **changes})


SETTING = {"site": "ffn", "method": "static", "score": "random", "sparsity": 0.9}
MODELS = pd.DataFrame([{"model": "m"}])


def losses(*tables: pd.DataFrame):
    evidence = Evidence(models=MODELS, perplexity=pd.concat(tables))
    return evidence.losses("m", "c", SETTING)


def test_seeds_are_pooled():
    run = losses(rows(), rows(seed=1, nll=[3.0, 6.0]))
    assert run.values["nll"].tolist() == [2.0, 4.0]
    assert run.values["n_tokens"].tolist() == [10, 20]


def test_blocks_are_put_in_order():
    assert losses(rows(block=[1, 0])).values["nll"].tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    "tables",
    [(rows(), rows()), (rows(), rows(seed=1).head(1)), (rows(block=[0, 0]),)],
    ids=["twice", "seed lacks a block", "block twice"],
)
def test_damaged_runs(tables):
    with pytest.raises(KeepsetError, match=r"m c ffn static random .* missing or appears twice"):
        losses(*tables)


def test_two_runs_that_answer_to_one_setting():
    with pytest.raises(KeepsetError, match="more than one run answers"):
        losses(rows(), rows(window="other"))


def ratio(static: pd.DataFrame, dense: pd.DataFrame):
    dense = dense.assign(method="dense", score="none")
    evidence = Evidence(models=MODELS, perplexity=pd.concat([static, dense]))
    return evidence.ratio("m", "c", SETTING, None)


def test_other_blocks_are_not_compared():
    with pytest.raises(KeepsetError, match="random 90% and m c dense have not the same blocks"):
        ratio(rows(), rows(block=[0, 2]))


@pytest.mark.parametrize("change", [{"n_tokens": [10, 19]}, {"document": [0, 0]}])
def test_other_text_is_not_compared(change):
    with pytest.raises(KeepsetError, match="have blocks of other text"):
        ratio(rows(), rows(**change))


def test_a_loss_that_is_no_number_is_not_compared():
    with pytest.raises(KeepsetError, match="nll is not finite"):
        ratio(rows(nll=[1.0, float("nan")]), rows())


def test_the_blocks_that_both_have_are_compared():
    more = pd.concat([rows(), rows(block=[2, 3], document=[2, 3], nll=[70.0, 90.0])])
    found = ratio(rows(nll=[4.0, 5.0]), more)
    assert found.estimate == pytest.approx(6 / 30)
    assert (found.n, found.unit) == (2, "document")


def test_documents_are_the_unit():
    blocks = pd.concat([rows(), rows(block=[2, 3], document=[1, 1])])
    assert ratio(blocks.assign(nll=[2.0, 3.0, 1.0, 4.0]), blocks).n == 2


def test_tables_from_before_are_refused():
    with pytest.raises(KeepsetError, match="lacks document; evaluate it again"):
        losses(rows().drop(columns="document"))


def test_reading_and_writing_are_two_runs():
    table = pd.concat([rows(access=how, nll=[n, n]) for how, n in (("read", 1), ("write", 2))])
    evidence = Evidence(models=MODELS, perplexity=table)
    assert evidence.losses("m", "c", SETTING) is None
    assert evidence.losses("m", "c", {**SETTING, "access": "write"}).values["nll"].tolist() == [
        2,
        2,
    ]


def test_windows_in_order():
    held = [rows(method="windowed", window=w, choice="causal") for w in ("sequence", "16", "2")]
    evidence = Evidence(models=MODELS, perplexity=pd.concat(held))
    setting = {**SETTING, "method": "windowed", "choice": "causal"}
    assert evidence.windows("m", "c", setting) == ["2", "16", "sequence"]
    assert evidence.windows("m", "c", {**setting, "choice": "oracle"}) == []


def test_nothing_measured():
    evidence = Evidence(models=MODELS)
    assert evidence.losses("m", "c", None) is None
    assert evidence.corpora("m") == evidence.tasks_of("m") == []
