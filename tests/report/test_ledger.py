from __future__ import annotations

import re

import pandas as pd
import pytest

import made_up_ledger
from keepset.analyse.claims.judge import CASE_COLUMNS
from keepset.cli import main
from keepset.report import ledger

LEDGER = made_up_ledger.ledger()
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
            "7 reproduced, 7 contradicted, 7 inconclusive, 7 not tested here\n"
        )

    def test_colour_only_where_asked(self):
        assert "\033" not in self.text
        assert "\033[1;31m" in ledger.text(LEDGER, colour=True)

    def test_a_ratio_near_one_shows_what_it_differs_by(self):
        row = LEDGER[LEDGER["scale"] == "ratio"].iloc[0]
        near = row.to_dict() | {"cases": 1, "estimate": 1.0004, "ci_low": 0.9991, "ci_high": 1.0017}
        assert ledger.ours(pd.Series(near)) == "1.000 x [0.999, 1.002]"

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

    def test_an_interval_outside_is_explained(self):
        assert "is no contradiction yet" in ledger.page(LEDGER, CASES, "s")

    def test_html_is_escaped_and_whole(self):
        text = ledger.page(LEDGER, CASES, "a<b")
        assert "a&lt;b" in text
        assert "&lt;a&gt; &amp; b" in text
        for tag in ("table", "tr", "td", "th", "details", "body"):
            assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>")
        assert "http" not in text


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
