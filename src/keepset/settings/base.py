"""What every part of the configuration is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from keepset.rules.kinds import KINDS
from keepset.rules.scores import (
    CHANNEL_SCORES,
    EXPERT_SCORES,
    INPUT_SCORES,
    NEURON_SCORES,
    decoding_names,
    static_names,
    token_names,
)

Window = Annotated[int, Field(ge=1, strict=True)] | Literal["sequence", "corpus"]
DialWindow = Annotated[int, Field(ge=1, strict=True)] | Literal["sequence"]
Choice = Literal["oracle", "causal"]
if TYPE_CHECKING:  # only the registry knows the names
    SiteKind = str
    ScoreName = str
    TokenScoreName = str
    DecodingScoreName = str
    StateScoreName = str
    StateTokenScoreName = str
    InputScoreName = str
    InputTokenScoreName = str
    ExpertScoreName = str
    ExpertTokenScoreName = str
else:
    ScoreName = Literal[static_names(NEURON_SCORES)]
    TokenScoreName = Literal[token_names(NEURON_SCORES)]
    DecodingScoreName = Literal[decoding_names(NEURON_SCORES)]
    StateScoreName = Literal[static_names(CHANNEL_SCORES)]
    StateTokenScoreName = Literal[token_names(CHANNEL_SCORES)]
    InputScoreName = Literal[static_names(INPUT_SCORES)]
    InputTokenScoreName = Literal[token_names(INPUT_SCORES)]
    ExpertScoreName = Literal[static_names(EXPERT_SCORES)]
    ExpertTokenScoreName = Literal[token_names(EXPERT_SCORES)]
    SiteKind = Literal[tuple(KINDS)]
Access = Literal["read", "write"]
Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""What the name of a study, model, corpus, task or specimen looks like: it is part of paths."""
Name = Annotated[str, Field(pattern=NAME)]
TextFormat = Literal[
    "auto", "text", "jsonl", "csv", "parquet", "arrow", "mediawiki", "pydoc", "python"
]


def unique(values: list[Any]) -> list[Any]:
    """The values, none of which may repeat."""
    if len(set(values)) != len(values):
        raise ValueError("values must not repeat")
    return values


class Strict(BaseModel):
    """A section: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
