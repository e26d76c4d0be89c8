from __future__ import annotations

from pathlib import Path

import pytest

from keepset.analyse.claims import CLAIMS, papers
from keepset.errors import KeepsetError


def test_numbers_have_sources():
    table = papers.numbers()
    assert len(table) == 82
    assert table.notna().all(axis=None)
    assert set(table["claim"]) <= {claim.id for claim in CLAIMS}


def test_as_printed():
    assert papers.values("C4", "static 0.90", "OPT-1.3B").tolist() == ["138"]
    assert papers.values("C12", "ghost 0.5", "Mamba2-1.3B").tolist() == ["14.23"]
    assert papers.values("C14", "disagree").tolist() == ["0.413"]


def test_fill():
    assert papers.fill("{C4:static 0.90} times") == "138 to 683 times"
    assert papers.fill("{C5:dynamic 0.95}") == "1.0"
    assert papers.fill("{C12:random 0.5@Mamba2-130M}") == "45.60"
    assert papers.fill("{C1:spread}") == "0.04"


def test_no_such_number():
    with pytest.raises(KeepsetError, match=r"no number of C4 under static 0\.5"):
        papers.fill("{C4:static 0.5}")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_is_whole(claim):
    assert "{" not in papers.fill(claim.paper)
    assert claim.rule.__doc__.startswith(f"{claim.id}:")
    for text in (claim.title, claim.sentence, claim.source, claim.test, claim.needs):
        assert text
    assert len(claim.title) <= 44, "too long for the figure"


def table_row(claim):
    """The row of a claim in the table of docs/CLAIMS.md."""
    texts = (claim.sentence, claim.source, papers.fill(claim.paper), claim.test)
    cells = [text.replace("||", "\N{DOUBLE VERTICAL LINE}").replace("|", r"\|") for text in texts]
    return f"| {claim.id} | {' | '.join(cells)} |"


def test_the_table_of_the_docs_is_the_catalogue():
    lines = (Path(__file__).parents[3] / "docs" / "CLAIMS.md").read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith(("| C", "| D", "| E", "| F"))]
    missing = [table_row(claim) for claim in CLAIMS if table_row(claim) not in rows]
    assert not missing, "docs/CLAIMS.md, table of claims, needs these rows:\n" + "\n".join(missing)
    assert rows == [table_row(claim) for claim in CLAIMS], "docs/CLAIMS.md: other rows or order"
