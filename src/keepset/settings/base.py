"""What every part of the configuration is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from keepset.rules.kinds import KINDS

Window = Annotated[int, Field(ge=1, strict=True)] | Literal["sequence", "corpus"]
DialWindow = Annotated[int, Field(ge=1, strict=True)] | Literal["sequence"]
Choice = Literal["oracle", "causal"]
ScoreName = Literal["magnitude", "impact", "weight", "taylor", "random"]
TokenScoreName = Literal["magnitude", "impact", "random"]
StateScoreName = Literal[
    "ghost",
    "ghost-uniform",
    "ghost-oneshot",
    "ghost-separate",
    "magnitude",
    "magnitude-uniform",
    "taylor",
    "random",
]
if TYPE_CHECKING:
    SiteKind = str
else:
    SiteKind = Literal[tuple(KINDS)]
Access = Literal["read", "write"]
Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
TextFormat = Literal["auto", "text", "jsonl", "parquet", "mediawiki", "pydoc", "python"]


def unique(values: list[Any]) -> list[Any]:
    """The values, none of which may repeat."""
    if len(set(values)) != len(values):
        raise ValueError("values must not repeat")
    return values


class Strict(BaseModel):
    """A section: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def exactly_one(source: BaseModel, keys: Iterable[str]) -> None:
    """Check that one of `keys`, and no other, is given."""
    given = [key for key in keys if getattr(source, key) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(keys)}; got {given or 'none'}")
