from __future__ import annotations

import pytest
from clean import assert_clean, legend, texts

import made_up_ledger
from keepset.analyse.claims import CLAIMS
from keepset.errors import KeepsetError
from keepset.report.figures import claims, style

LEDGER = made_up_ledger.ledger()


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
    assert legend(claims.draw(LEDGER)) == [
        "reproduced: 5",
        "contradicted: 5",
        "inconclusive: 5",
        "not tested here: 5",
        "hollow: direction only",
    ]
    assert "hollow" not in str(legend(claims.draw(LEDGER.assign(scope="value"))))


def test_a_specimens_number_does_not_stand_beside_the_papers():
    for row in LEDGER[LEDGER["scope"] == "direction"].itertuples():
        assert "papers" not in claims._detail(row)
        assert "asked" in claims._detail(row)


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((-0.29, -0.05), "outside what is asked (0 to 0.5), but not contradicted: p = 0.17"),
        ((0.1, 0.3), "inside what is asked (0 to 0.5), but not reproduced: p = 0.06"),
        ((-0.1, 0.3), None),
    ],
)
def test_an_open_claim_says_why_its_interval_does_not_decide(interval, words):
    row = LEDGER[LEDGER["verdict"] == "inconclusive"].head(1)
    row = row.assign(bound_low=0.0, bound_high=0.5, p_against_holm=0.17, p_for_holm=0.06)
    figure = claims.draw(row.assign(ci_low=interval[0], ci_high=interval[1]))
    shown = " ".join(text for text, _ in texts(figure)).replace("\u00a0", " ")
    assert words in shown if words else "what is asked" not in shown
    assert_clean(figure)


def test_the_papers_words_are_not_cut_off():
    long = "23 (W = 1), 6200 (W = 1024), Qwen2.5-1.5B, on WikiText-2 and on two other corpora"
    figure = claims.draw(LEDGER.assign(scope="value", paper=long, source="a paper"))
    assert_clean(figure)
    shown = " ".join(text for text, _ in texts(figure)).replace("\u00a0", " ")
    assert shown.count(long) == len(LEDGER)


def test_nothing_to_draw():
    with pytest.raises(KeepsetError, match="figure claims"):
        claims.draw(LEDGER.head(0))


def test_same_bytes_again(tmp_path):
    paths = [style.save(claims.draw(LEDGER), tmp_path / name) for name in ("a", "b")]
    for one, other in zip(*paths, strict=True):
        assert one.read_bytes() == other.read_bytes()
