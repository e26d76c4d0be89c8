"""The ledger of claims for readers: terminal, LaTeX, HTML."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable
from typing import Any

import pandas as pd

from keepset.analyse.claims import VERDICTS
from keepset.report import latex as tex
from keepset.report.wording import bound, number, ratio

# Mark, ANSI colour, and the colour of an HTML page: Okabe and Ito's, the orange darker, since
# white letters on theirs cannot be read.
_LOOKS = {
    "reproduced": ("+", "32", "#0072B2"),
    "contradicted": ("x", "31", "#D55E00"),
    "inconclusive": ("?", "33", "#8a5f00"),
    "not tested here": ("-", "90", "#666666"),
}


def counts(ledger: pd.DataFrame) -> str:
    """ "9 reproduced, 2 contradicted, ..." """
    by_verdict = ledger["verdict"].value_counts()
    return ", ".join(f"{by_verdict.get(verdict, 0)} {verdict}" for verdict in VERDICTS)


def ours(row: Any) -> str:
    """The deciding case: its number and interval; empty where nothing was tested."""
    if not row.cases:
        return ""
    times, shown = (" x", ratio) if row.scale == "ratio" else ("", number)
    text = f"{shown(row.estimate)}{times}"
    if not math.isnan(row.ci_low):
        text += f" [{shown(row.ci_low)}, {shown(row.ci_high)}]"
    return text


def p_value(row: Any) -> float:
    """p of the verdict, adjusted."""
    return float(row.p_against_holm if row.verdict == "contradicted" else row.p_for_holm)


def case(row: Any) -> str:
    """Which case decides, and what it compares."""
    return f"{row.model}, {row.where}: {row.compared}" if row.cases else ""


def text(ledger: pd.DataFrame, *, colour: bool = False, total: bool = True) -> str:
    """The ledger for a terminal of 100 columns.

    Args:
        ledger: What `claims.judge` returned, or claims.csv.
        colour: Use ANSI colours.
        total: End with the number of each verdict.
    """
    lines = []
    for row in ledger.itertuples():
        verdict = str(row.verdict)
        mark, ansi, _ = _LOOKS[verdict]
        word = f"{verdict}, direction" if row.scope == "direction" else verdict
        head = f"{row.claim:<4}{mark} {word}"
        lines.append(f"\033[1;{ansi}m{head}\033[0m" if colour else head)
        details = [str(row.sentence), f"papers: {row.paper}"]
        if row.cases:
            details.append(f"here: {ours(row)}, asked {bound(row)} ({case(row)})")
        details.append(str(row.note))
        for detail in details:
            lines += textwrap.wrap(detail, 100, initial_indent=" " * 6, subsequent_indent=" " * 8)
    return "\n".join([*lines, *(["", counts(ledger)] if total else []), ""])


def cases_text(cases: pd.DataFrame, claim: str) -> str:
    """The cases of one claim for a terminal, as a table."""
    claim_cases = cases[cases["claim"] == claim]
    if not len(claim_cases):
        return f"{claim}: no case was run\n"
    columns = ["model", "where", "compared", "scope", "estimate", "ci_low", "ci_high", "n"]
    columns += ["unit", "p_for", "p_against", "p_against_holm", "verdict"]
    return claim_cases[columns].to_string(index=False, float_format=number) + "\n"


def latex(ledger: pd.DataFrame) -> str:
    """The ledger as a longtable."""
    cells = []
    for row in ledger.itertuples():
        numbers = (ours(row) or tex.NOTHING, bound(row) or tex.NOTHING)
        words = map(str, (row.claim, row.title, row.paper, *numbers, row.verdict))
        *texts, verdict = map(tex.escape, words)
        mark = r"$^{d}$" if row.scope == "direction" else ""
        cells.append([*texts, verdict + mark, tex.p_value(p_value(row))])
    caption = (
        "The claims and their verdicts. Ours: the deciding case, with its interval; asked: where"
        " the claim says that it lies; $p$: of the verdict, Holm within a family of claims."
        " $^{d}$: direction only, in specimens trained here."
    )
    head = ["claim", "", "papers", "ours", "asked", "verdict", "p"]
    return tex.longtable(head, cells, caption, "tab:claims")


def page(ledger: pd.DataFrame, cases: pd.DataFrame, study: str) -> str:
    """The ledger and its cases as one HTML page that needs no other file."""
    rows = "\n".join(_html_claim(row, cases) for row in ledger.itertuples())
    head = _row("th", ("", "claim", "papers", "here", "asked", "verdict", "p"))
    title = f"Claims of study {html.escape(study)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        f"<p>{html.escape(counts(ledger))}. A verdict rests on the case that holds least, or that"
        " fails most; p-values are adjusted by Holm's method within a family of claims. So an"
        " interval outside of what is asked is no contradiction yet: it is that of one case, and of"
        " many cases one lies outside by chance. Specimens are small models trained here, once"
        " each: they speak about directions only, and their p-values are over text, not over"
        " trainings.</p>\n"
        f"<table><thead>{head}</thead><tbody>\n{rows}\n</tbody></table>\n</body></html>\n"
    )


_STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em}"
    "table{border-collapse:collapse;width:100%}td,th{padding:.4em .6em;text-align:left;"
    "vertical-align:top;border-bottom:1px solid #ccc}small{color:#444}"
    "b.verdict{color:#fff;border-radius:.3em;padding:.1em .5em;white-space:nowrap}"
    "details table{font-size:85%}"
)
_CASE_COLUMNS = ("model", "where", "compared", "estimate", "ci_low", "ci_high", "n", "unit", "test")


def _html_claim(row: Any, cases: pd.DataFrame) -> str:
    p = p_value(row)
    shown = "" if math.isnan(p) else "&lt; 0.001" if p < 0.001 else f"{p:.3f}"
    scope = "<br><small>direction only</small>" if row.scope == "direction" else ""
    ink = _LOOKS[row.verdict][2]
    verdict = f'<b class="verdict" style="background:{ink}">{row.verdict}</b>{scope}'
    cells = [
        f"<b>{row.claim}</b>",
        f"{html.escape(str(row.sentence))}<br><small>{html.escape(str(row.source))}."
        f" {html.escape(str(row.test))}. <i>{html.escape(str(row.note))}.</i></small>"
        f"{_html_cases(cases[cases['claim'] == row.claim])}",
        html.escape(str(row.paper)),
        f"{html.escape(ours(row))}<br><small>{html.escape(case(row))}</small>",
        html.escape(bound(row)),
        verdict,
        shown,
    ]
    return _row("td", cells)


def _html_cases(cases: pd.DataFrame) -> str:
    if not len(cases):
        return ""
    rows = [_row("th", (*_CASE_COLUMNS, "p for", "p against", "over the cases", "verdict"))]
    p_values = ["p_for", "p_against", "p_against_holm"]
    for values in cases[[*_CASE_COLUMNS, *p_values, "verdict"]].to_numpy():
        words = (value if isinstance(value, str) else number(value) for value in values)
        rows.append(_row("td", map(html.escape, words)))
    table = f"<table>{''.join(rows)}</table>"
    return f"<details><summary>{len(cases)} cases</summary>{table}</details>"


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"
