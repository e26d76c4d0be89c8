from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from keepset import claims, ledger
from keepset.claims import papers
from keepset.claims.judge import CASE_COLUMNS, LEDGER_COLUMNS
from keepset.cli import main
from keepset.figures import claims as figure
from keepset.figures import style


def made_up_ledger() -> pd.DataFrame:
    """One row of each verdict and scope, with the longest words that there are."""
    rows = []
    for at, claim in enumerate(claims.CLAIMS):
        verdict = claims.VERDICTS[at % 4]
        tested = verdict != "not tested here"
        row = dict.fromkeys(LEDGER_COLUMNS, np.nan)
        row |= {name: getattr(claim, name) for name in ("title", "sentence", "source", "family")}
        row |= {"claim": claim.id, "paper": papers.fill(claim.paper), "test": claim.test}
        scope = ("value", "direction")[at // 4 % 2] if tested else "none"
        row |= {"verdict": verdict, "scope": scope, "cases": 3 * tested, "hold": 1, "fail": 0}
        row |= {"note": f"needs {claim.needs}", "scale": "ratio" if at % 2 else "difference"}
        row |= {"model": "smollm2-135m", "where": "speeches", "compared": "static 90% / dense"}
        if tested:
            row |= {"estimate": 12345.678, "ci_low": 11111.1, "ci_high": 23456.7, "n": 16}
            row |= {"bound_low": 100.0, "p_for_holm": 0.0004, "p_against_holm": 0.8}
        rows.append(row)
    return pd.DataFrame(rows, columns=LEDGER_COLUMNS)


LEDGER = made_up_ledger()
CASES = pd.DataFrame(
    [dict.fromkeys(CASE_COLUMNS, 1.0) | {"claim": "C1", "compared": "<a> & b", "model": "m"}]
)


class TestText:
    text = ledger.text(LEDGER)

    def test_every_claim_with_its_verdict(self):
        for row in LEDGER.itertuples():
            assert re.search(rf"^{row.claim} +[-+x?] {row.verdict}", self.text, re.MULTILINE)

    def test_direction_is_said(self):
        assert self.text.count(", direction\n") == (LEDGER["scope"] == "direction").sum()

    def test_fits_the_width(self):
        assert max(map(len, self.text.splitlines())) <= 100

    def test_counts(self):
        assert self.text.endswith(
            "5 reproduced, 5 contradicted, 5 inconclusive, 5 not tested here\n"
        )

    def test_colour_only_where_asked(self):
        assert "\033" not in self.text
        assert "\033[1;31m" in ledger.text(LEDGER, colour=True)

    def test_the_number_and_what_was_asked(self):
        assert "12,346 [11,111, 23,457], asked > 100" in self.text


class TestFiles:
    def test_latex_is_whole(self):
        text = ledger.latex(LEDGER)
        assert text.count("{") == text.count("}")
        assert text.count("$") % 2 == 0
        assert not re.search(r"(?<!\\)%", text.split("\n", 1)[1])
        body = text.split("\\endfoot\n")[1].split("\\end{longtable}")[0].splitlines()
        assert {line.count(" & ") for line in body} == {6}

    def test_html_is_escaped_and_whole(self):
        text = ledger.page(LEDGER, CASES, "a<b")
        assert "a&lt;b" in text
        assert "&lt;a&gt; &amp; b" in text
        for tag in ("table", "tr", "td", "th", "details", "body"):
            assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>")
        assert "http" not in text


class TestFigure:
    def test_every_claim_and_nothing_off_the_page(self):
        clean = importlib.import_module("figures.clean")
        drawn = figure.draw(LEDGER)
        assert drawn.get_figwidth() == 3.5
        clean.assert_clean(drawn)
        shown = [text for text, _ in clean.texts(drawn)]
        assert {claim.id for claim in claims.CLAIMS} <= set(shown)

    def test_a_specimens_number_does_not_stand_beside_the_papers(self):
        for row in LEDGER[LEDGER["scope"] == "direction"].itertuples():
            assert "papers" not in figure._detail(row)

    def test_nothing_to_draw(self):
        with pytest.raises(Exception, match="claims"):
            figure.draw(LEDGER.head(0))

    def test_same_bytes_again(self, tmp_path):
        paths = [style.save(figure.draw(LEDGER), tmp_path / name) for name in ("a", "b")]
        for one, other in zip(*paths, strict=True):
            assert one.read_bytes() == other.read_bytes()


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path):
        LEDGER.to_csv(tmp_path / "claims.csv", index=False)
        CASES.to_csv(tmp_path / "claims_cases.csv", index=False)
        return str(tmp_path)

    def test_prints_what_is_stored(self, folder, capsys):
        assert main(["claims", folder]) == 0
        assert capsys.readouterr().out == ledger.text(LEDGER)

    def test_one_claim_with_its_cases(self, folder, capsys):
        assert main(["claims", folder, "--claim", "c1"]) == 0
        shown = capsys.readouterr().out
        assert "<a> & b" in shown
        assert "C2" not in shown

    def test_unknown_claim(self, folder, capsys):
        assert main(["claims", folder, "--claim", "C99"]) == 1
        assert "--claim C99: no such claim; known: C1, C2" in capsys.readouterr().err

    def test_no_ledger_yet(self, tmp_path, capsys):
        assert main(["claims", str(tmp_path)]) == 1
        assert "run `snakemake --cores 1 claims`" in capsys.readouterr().err
