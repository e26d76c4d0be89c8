from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

import made_up
import made_up_state
from keepset.analyse import comparisons, significance
from keepset.errors import KeepsetError
from keepset.report import latex, tables
from keepset.settings import Statistics


@pytest.fixture(scope="module")
def found() -> dict[str, pd.DataFrame]:
    perplexity = made_up.perplexity(["relu"], ("wiki_en", "docs")).query("corpus == 'docs'")
    capability = made_up.capability(["relu"], items=60)
    tested = significance.test_significance(perplexity, capability, Statistics(), pd.DataFrame())
    return {**tested, "correlation": made_up.correlation(["relu"], ("wiki_en",))}


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables")
    tables.write_tables(found, path, 0.95)
    return path


def body(text: str) -> list[list[str]]:
    lines = text.split("\\endfoot\n")[1].split("\\end{longtable}")[0].splitlines()
    assert all(line.endswith(r" \\") for line in lines)
    return [line.removesuffix(r" \\").split(" & ") for line in lines]


def assert_whole(text: str) -> None:
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0
    # An unescaped percent sign would hide the rest of its line.
    assert not re.search(r"(?<!\\)%", text.split("\n", 1)[1])
    columns = re.search(r"\\begin\{longtable\}\{(l+)\}", text).group(1)
    assert {len(row) for row in body(text)} == {len(columns)}


class TestFiles:
    def test_names(self, folder):
        names = {"perplexity", "dial", "capability", "trend", "correlations"}
        expected = {f"{name}.{kind}" for name in names for kind in ("csv", "tex")}
        assert {path.name for path in folder.iterdir()} == expected

    def test_csv_keeps_every_digit(self, folder, found):
        written = pd.read_csv(folder / "perplexity.csv")
        ratios = found["ratios"].query("method != 'windowed'").reset_index(drop=True)
        assert written["ratio"].equals(ratios["ratio"])
        assert written["p_holm"].equals(ratios["p_holm"])

    def test_same_bytes_again(self, folder, found, tmp_path):
        for path in tables.write_tables(found, tmp_path, 0.95):
            assert path.read_bytes() == (folder / path.name).read_bytes()

    @pytest.mark.parametrize("name", ["perplexity", "dial", "capability", "trend", "correlations"])
    def test_latex_is_whole(self, folder, name):
        assert_whole((folder / f"{name}.tex").read_text())

    def test_nothing_measured(self, tmp_path):
        for path in tables.write_tables({"capability": pd.DataFrame(columns=["n"])}, tmp_path):
            assert path.exists()
        assert "no measurements" in (tmp_path / "capability.tex").read_text()

    def test_unknown_table(self, tmp_path):
        with pytest.raises(KeepsetError, match=r"cannot write ratio; known: .*ratios"):
            tables.write_tables({"ratio": pd.DataFrame()}, tmp_path)

    def test_missing_column(self, found, tmp_path):
        with pytest.raises(KeepsetError, match=r"table ratios: missing column 'ppl_dense'"):
            tables.write_tables({"ratios": found["ratios"].drop(columns="ppl_dense")}, tmp_path)


class TestContents:
    def test_perplexity(self, folder, found):
        rows = body((folder / "perplexity.tex").read_text())
        assert [row[:2] + row[3:7] for row in rows] == [
            ["relu", "docs", "ffn", "--", "magnitude", "static"],
            ["relu", "docs", "ffn", "--", "magnitude", "dynamic"],
        ]
        one = found["ratios"].query("method == 'static' and sparsity == 0.9").iloc[0]
        ends = f"[{one['ci_low']:.3f}, {one['ci_high']:.3f}]"
        assert rows[0][10] == rf"\shortstack{{{one['ratio']:.3f}\\{{\scriptsize {ends}}}}}"

    def test_the_rounding_of_dynamic_rules(self, found, tmp_path):
        dynamic = found["ratios"]["method"] == "dynamic"
        noise = found["ratios"]["sparsity"].where(dynamic) / 100
        tables.write_tables({"ratios": found["ratios"].assign(rounding=noise)}, tmp_path)
        rows = body((tmp_path / "perplexity.tex").read_text())
        assert [row[6:8] for row in rows] == [["static", "--"], ["dynamic", r"0.98\%"]]

    def test_correlations_of_parts_of_the_text_are_not_shown(self, found, tmp_path):
        part = found["correlation"].assign(left_out=0)
        tables.write_tables({"correlation": pd.concat([found["correlation"], part])}, tmp_path)
        shown = pd.read_csv(tmp_path / "correlations.csv")
        assert set(shown["left_out"]) == {-1}
        assert not shown.duplicated(["corpus", "size", "impact"]).any()

    def test_dial(self, folder):
        rows = body((folder / "dial.tex").read_text())
        assert [row[6] for row in rows] == [*made_up.WINDOWS]
        assert all("shortstack" in cell for row in rows for cell in row[7:])

    def test_capability(self, folder):
        rows = body((folder / "capability.tex").read_text())
        assert rows[0][3:10] == ["ffn", "--", "dense", "--", r"0\%", "--", "--"]
        assert rows[0][-2:] == ["--", "--"]
        assert rows[3][5:10] == ["windowed", "magnitude", r"90\%", "32", "oracle"]

    def test_correlations(self, folder):
        assert r"wiki\_en" in (folder / "correlations.tex").read_text()
        assert set(pd.read_csv(folder / "correlations.csv")["layer"]) == {-1}

    def test_equivalent_is_marked(self, found, tmp_path):
        same = found["ratios"].assign(equivalent=True)
        tables.write_tables({"ratios": same}, tmp_path)
        assert all("$^{=}$" in row[8] for row in body((tmp_path / "perplexity.tex").read_text()))

    def test_unknown_interval_leaves_the_number(self, found, tmp_path):
        one_block = found["ratios"].assign(ci_low=np.nan, ci_high=np.nan, equivalent=False)
        tables.write_tables({"ratios": one_block}, tmp_path)
        text = (tmp_path / "perplexity.tex").read_text()
        assert "nan" not in text
        assert "shortstack" not in text

    def test_level_in_the_caption(self, folder):
        assert r"with 95\% $t$ intervals over documents" in (folder / "perplexity.tex").read_text()


class TestNumber:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (1.00449, "1.004"),
            (21.554, "21.55"),
            (999.96, "1,000"),
            (12345.6, "12,346"),
            (99999.9, r"$1.00 \times 10^{5}$"),
            (1234567, r"$1.23 \times 10^{6}$"),
            (-0.5604, "$-$0.560"),
            (-0.0001, "0.000"),
            (0.0, "0.000"),
            (np.nan, "--"),
            (np.inf, r"$\infty$"),
        ],
    )
    def test_examples(self, value, text):
        assert latex.number(value) == text

    @given(st.floats(1e-3, 1e12))
    def test_close_to_the_value(self, value):
        text = latex.number(value).replace(",", "").replace("$", "")
        shown = float(text.replace(r" \times 10^{", "e").replace("}", ""))
        assert shown == pytest.approx(value, rel=5e-3, abs=5.1e-4)

    def test_p_value(self):
        shown = [latex.p_value(p) for p in (0.0004, 0.001, 0.5, np.nan)]
        assert shown == ["$<$ 0.001", "0.001", "0.500", "--"]


def test_escape():
    assert latex.escape(r"a_b 5% \x~") == r"a\_b 5\% \textbackslash{}x\textasciitilde{}"


@pytest.fixture(scope="module")
def compared() -> dict[str, pd.DataFrame]:
    settings, none = Statistics(), pd.DataFrame()
    perplexity = made_up_state.perplexity(["hybrid"], blocks=4)
    perplexity = perplexity[(perplexity["method"] != "windowed") & (perplexity["sparsity"] <= 0.5)]
    items = made_up_state.recall(["hybrid"], each=3)
    ratios = significance.test_significance(perplexity, none, settings, none)["ratios"]
    return {
        "recall": comparisons.recall_table(items, settings, 1 / 64),
        "state_pairs": comparisons.state_pairs(perplexity, items, settings),
        "side_by_side": comparisons.side_by_side(ratios),
        "lengths": comparisons.length_ratios(made_up_state.lengths(["mamba2"]), settings),
    }


@pytest.fixture(scope="module")
def comparison_tables(compared, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables")
    tables.write_tables(compared, path, 0.95)
    return path


class TestComparisons:
    @pytest.mark.parametrize("name", ["recall", "state_pairs", "side_by_side", "lengths"])
    def test_latex_is_whole(self, comparison_tables, name):
        assert_whole((comparison_tables / f"{name}.tex").read_text())

    def test_recall(self, comparison_tables, compared):
        rows = body((comparison_tables / "recall.tex").read_text())
        assert rows[0][2:10] == ["state", "--", "dense", "--", r"0\%", "--", "--", "all"]
        one = compared["recall"].iloc[0]
        assert rows[0][10].startswith(rf"\shortstack{{{one['accuracy']:.3f}\\")

    def test_state_pairs(self, comparison_tables, compared):
        rows = body((comparison_tables / "state_pairs.tex").read_text())
        assert len(rows) == len(compared["state_pairs"])
        assert rows[0][:6] == ["hybrid", "wiki", "perplexity", r"30\%", "ghost", "magnitude"]
        assert rows[2][5] == "random"
        assert rows[-1][5] == "random (2030)"

    def test_side_by_side(self, comparison_tables, compared):
        rows = body((comparison_tables / "side_by_side.tex").read_text())
        assert [row[2:5] for row in rows[:4]] == [
            [r"50\%", "memory", "size"],
            [r"50\%", "memory", "impact"],
            [r"50\%", "scratch", "size"],
            [r"50\%", "scratch", "impact"],
        ]
        assert [row[7] == "--" for row in rows[:4]] == [False, False, True, True]
        ratio = compared["side_by_side"].query(
            "sparsity == 0.5 and part == 'scratch' and persistence == 'static' and by == 'size'"
        )["ratio"]
        assert f"{ratio.item():.3f}" in rows[2][5]

    def test_lengths(self, comparison_tables):
        rows = body((comparison_tables / "lengths.tex").read_text())
        assert len(rows) == 4 * 3
        assert all("shortstack" in cell for cell in rows[0][4:7])

    def test_states_and_neurons_are_told_apart(self, tmp_path):
        perplexity = made_up_state.perplexity(["hybrid"], blocks=4).query("sparsity in (0, 0.5)")
        found = significance.test_significance(
            perplexity, pd.DataFrame(), Statistics(), pd.DataFrame()
        )
        tables.write_tables({"ratios": found["ratios"], "trend": found["trend"]}, tmp_path)
        names = {tuple(row[3:5]) for row in body((tmp_path / "perplexity.tex").read_text())}
        assert names == {("state", "both"), ("state", "read"), ("state", "write"), ("ffn", "--")}
        dials = [tuple(row[2:5]) for row in body((tmp_path / "trend.tex").read_text())]
        assert ("state", "write", "impact") in dials
        assert ("ffn", "--", "magnitude") in dials
        windows = [row[6] for row in body((tmp_path / "dial.tex").read_text())]
        assert windows == 5 * [*made_up_state.WINDOWS]
