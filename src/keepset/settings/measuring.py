"""What results are computed and timed with: kernels, clocks, intervals."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from keepset.settings.base import DecodingScoreName, Name, Sparsity, Strict


class Kernels(Strict):
    """Which implementation runs, where there are several; all agree up to rounding.

    auto takes the fastest of those that are installed and work on the device; torch is always
    there. A name that is not installed is an error.
    """

    ffn: Literal["auto", "torch", "numba", "triton"] = Field(
        "auto",
        description="Feed-forward blocks under a keep rule: decoding by all, whole passages by"
        " torch or, on a CPU, numba.",
    )
    scan: Literal["auto", "torch", "numba", "mamba-ssm"] = Field(
        "auto",
        description="The scan of Mamba-2 mixers and of the gated delta rule, under rules too, and"
        " its convolution. mamba-ssm is for Mamba-2.",
    )
    state: Literal["auto", "torch", "triton", "mamba-ssm"] = Field(
        "auto", description="A token's step through the state of Mamba-2 mixers, while decoding."
    )


TimedDtype = Literal["float32", "bfloat16", "float16"]


class Shape(Strict):
    """The sizes of an FFN block."""

    d_model: int = Field(ge=1, description="Width of the model.")
    n_units: int = Field(ge=1, description="Neurons of the block.")
    gated: bool = Field(False, description="Whether it has a gate beside the up projection.")


class Benchmark(Strict):
    """What is timed, on `snakemake --cores 1 benchmarks` only."""

    dtype: TimedDtype = Field("float32", description="Of whole models.")
    threads: int = Field(1, ge=1, description="CPU threads.")
    block_dtypes: list[TimedDtype] | None = Field(
        None, min_length=1, description="Of blocks; that of whole models where nothing is said."
    )
    shapes: dict[Name, Shape] = Field(default_factory=dict, description="Blocks, random weights.")
    blocks: dict[Annotated[int, Field(ge=1)], list[Sparsity]] = Field(
        default_factory=dict, description="Tokens at a time -> sparsities at which they are timed."
    )
    seconds: float = Field(0.5, ge=0, description="Per comparison; at least nine rounds are run.")
    corpus: Name = Field(description="The corpus of the prompt and of the static sets.")
    score: DecodingScoreName = "magnitude"
    sparsities: list[Sparsity] = Field(min_length=1, description="Of dynamic and static decoding.")
    sparsity: Sparsity = Field(0.9, description="Of windowed decoding: the frontier's.")
    windows: list[Annotated[int, Field(ge=1, strict=True)]] = Field(min_length=1)
    tokens: int = Field(24, ge=1, description="Decoded per rule; at least one whole window.")


MOST_GROUPS = 16
"""Calibration documents are dealt to this many groups, one of which at a time is left out: enough
for a standard error with 15 degrees of freedom, and few enough to keep in a file."""


class Statistics(Strict):
    """Intervals and tests."""

    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of every interval.")
    perplexity_margin: float = Field(0.01, gt=0, description="Equivalence margin, relative.")
    accuracy_margin: float = Field(0.05, gt=0, lt=1, description="Equivalence margin, absolute.")
    rounding_draws: Literal[0] | Annotated[int, Field(ge=2, strict=True)] = Field(
        3, description="Runs of dynamic rules with noise in the last bit of h; 0 for none."
    )
    rounding_tokens: int | None = Field(
        None,
        ge=1,
        description="Evaluation tokens of these runs, rounded up to whole blocks;"
        " text.evaluation_tokens at most, and if left out.",
    )
