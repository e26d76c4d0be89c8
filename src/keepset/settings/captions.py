"""A figure, and the caption that stands beside it in the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import cleandoc
from typing import Literal

from keepset.settings import Config

Target = Literal["figures", "benchmarks", "slim", "training"]
"""The targets of the workflow that draw figures."""

_SHARED = {
    "over_documents": (
        "{confidence:g}% t intervals over the documents that the evaluated text is from, with model"
        " and calibration text fixed"
    ),
    "first_token": (
        "The first token of a context is run dense under every rule on neurons and other inputs."
    ),
    "rounding": (
        "Hatched: what rounding alone does to dynamic rules, twice the standard deviation over"
        " {config.statistics.rounding_draws} runs with noise in the last bit; their intervals"
        " include it."
    ),
}

_SKILLED = (
    " A model whose dense accuracy is not clearly above {accuracy_margin:g}% has too little to"
    " lose, and was run dense alone: it is not drawn."
)


@dataclass(frozen=True)
class Figure:
    """A figure, and what stands beside it in the report.

    Attributes:
        name: Its module, and its file.
        tables: What it is drawn from, in the order of the arguments of `draw`: files of the study
            without ending.
        absent: What the page says where the models turn out to have nothing to draw.
        text: The caption, in reStructuredText with fields of `str.format` (see `caption`).
        site: The kind of site of the rows that are drawn, where the first table holds several.
        when: Whether a study has it.
        target: The target of the workflow that draws it.
    """

    name: str
    tables: tuple[str, ...]
    absent: str
    text: str
    site: str | None = None
    when: Callable[[Config], bool] = lambda _: True
    target: Target = "figures"

    def caption(self, config: Config) -> str:
        """The caption.

        Its fields are `config`, shares of it in percent, and sentences that captions share.
        """
        percent = {
            "confidence": config.statistics.confidence,
            "accuracy_margin": config.statistics.accuracy_margin,
            "task_sparsity": config.capability.sparsity,
            "timed_sparsity": config.benchmark.sparsity if config.benchmark else 0.0,
            "within": config.slim.within if config.slim else 0.0,
        }
        shares = {name: 100 * share for name, share in percent.items()}
        sentences = {name: text.format(config=config, **shares) for name, text in _SHARED.items()}
        skilled = config.capability.skilled_only
        sentences["skilled"] = _SKILLED.format(**shares) if skilled else ""
        if not config.statistics.rounding_draws:
            sentences["rounding"] = "Rounding was not measured."
        return cleandoc(self.text).format(config=config, **shares, **sentences)
