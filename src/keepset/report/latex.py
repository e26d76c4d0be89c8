"""LaTeX for readers: numbers, intervals, longtables."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SPECIAL = {character: "\\" + character for character in "&%$#_{}"}
_SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
NOTHING = "--"

Cells = list[list[str]]


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def number(value: float) -> str:
    """Four significant digits, three decimals at most, as LaTeX; `--` for what is not known."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return r"$\infty$" if value > 0 else r"$-\infty$"
    power = int(f"{value:.3e}".partition("e")[2])
    if power >= 5:
        return rf"${value / 10**power:.2f} \times 10^{{{power}}}$"
    digits = 3 - min(max(power, 0), 3)
    # Adding zero turns a rounded -0.0 into 0.0.
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "$-$")


def p_value(value: float) -> str:
    """Three decimals, or that it is smaller."""
    if math.isnan(value):
        return NOTHING
    return "$<$ 0.001" if value < 0.001 else f"{value:.3f}"


def with_interval(value: float, low: float, high: float, mark: str = "") -> str:
    """A number above its interval; the number alone where the interval is not known."""
    if math.isnan(low):
        return number(value) + mark
    interval = rf"{{\scriptsize [{number(low)}, {number(high)}]}}"
    return rf"\shortstack{{{number(value)}{mark}\\{interval}}}"


def longtable(head: Sequence[str], cells: Cells, caption: str, label: str) -> str:
    """The source of a longtable in the manner of booktabs.

    `head` is plain text, `cells` and `caption` are LaTeX.
    """
    columns = "l" * max(1, len(head))
    title = " & ".join(escape(name) for name in head) + r" \\"
    body = [" & ".join(row) + r" \\" for row in cells] or [r"no measurements \\"]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,longtable}",
            rf"\begin{{longtable}}{{{columns}}}",
            rf"\caption{{{caption}}} \label{{{label}}} \\",
            r"\toprule",
            *([title, r"\midrule"] if head else []),
            r"\endhead",
            r"\bottomrule",
            r"\endfoot",
            *body,
            r"\end{longtable}",
            "",
        ]
    )
