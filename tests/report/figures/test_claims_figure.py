from __future__ import annotations

import pytest
from clean import assert_clean, legend, texts

import made_up_ledger
from keepset.analyse.claims import CLAIMS
from keepset.errors import KeepsetError
from keepset.report.figures import claims, style

LEDGER = made_up_ledger.ledger().assign(why="48 documents would decide, and only 24 can be had")


def words(figure):
    """All that is written, in order."""
    return " ".join(text for text, _ in texts(figure)).replace("\u00a0", " ")


def test_every_claim_and_nothing_off_the_page():
    figure = claims.draw(LEDGER)
    assert figure.get_figwidth() == 3.5
    assert_clean(figure)
    shown = [text for text, _ in texts(figure)]
    assert {claim.id for claim in CLAIMS} <= set(shown)
    assert {claim.title for claim in CLAIMS} <= set(shown)


def test_letters_are_legible_at_column_width():
    for ax in claims.draw(LEDGER).axes:
        assert min(text.get_fontsize() for text in ax.texts) >= 6


def test_legend_counts_verdicts():
    counts = [f"{verdict}: {(LEDGER['verdict'] == verdict).sum()}" for verdict in claims.LOOKS]
    assert legend(claims.draw(LEDGER)) == [*counts, "hollow: direction only"]
    assert "hollow" not in str(legend(claims.draw(LEDGER.assign(scope="value"))))


def test_a_specimens_number_does_not_stand_beside_the_papers():
    for row in LEDGER[LEDGER["scope"] == "direction"].itertuples():
        assert "papers" not in claims._detail(row)
        assert "asked" in claims._detail(row)


def test_an_open_claim_says_why():
    why = "2 of 3 cases fail, but not after adjustment: p = 0.17"
    row = LEDGER[LEDGER["verdict"] == "inconclusive"].head(1)
    row = row.assign(ci_low=-0.29, ci_high=-0.05, bound_low=0.0, bound_high=0.5, why=why)
    figure = claims.draw(row)
    assert_clean(figure)
    assert why in words(figure)
    assert why not in words(claims.draw(row.assign(verdict="contradicted")))


def test_the_papers_words_are_not_cut_off():
    long = "23 (W = 1), 6200 (W = 1024), Qwen2.5-1.5B, on WikiText-2 and on two other corpora"
    figure = claims.draw(LEDGER.assign(scope="value", paper=long, source="a paper"))
    assert_clean(figure)
    assert words(figure).count(long) == len(LEDGER)


def test_nothing_to_draw():
    with pytest.raises(KeepsetError, match="figure claims"):
        claims.draw(LEDGER.head(0))


def test_same_bytes_again(tmp_path):
    paths = [style.save(claims.draw(LEDGER), tmp_path / name) for name in ("a", "b")]
    for one, other in zip(*paths, strict=True):
        assert one.read_bytes() == other.read_bytes()
