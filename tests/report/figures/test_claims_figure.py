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


def test_nothing_to_draw():
    with pytest.raises(KeepsetError, match="figure claims"):
        claims.draw(LEDGER.head(0))


def test_same_bytes_again(tmp_path):
    paths = [style.save(claims.draw(LEDGER), tmp_path / name) for name in ("a", "b")]
    for one, other in zip(*paths, strict=True):
        assert one.read_bytes() == other.read_bytes()
