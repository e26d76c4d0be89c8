"""How specimens are trained."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from keepset.settings.base import Name, Strict
from keepset.settings.sources import TextSource


class TrainingSource(TextSource):
    """Further text that specimens are trained on."""

    repeats: int = Field(1, ge=1, description="How often it is read in one epoch.")


class Recall(Strict):
    """The recall rows of the training data (keepset.text.recall)."""

    share: float = Field(0.4, ge=0, le=1, description="Share of rows that are recall.")
    lead: float = Field(
        0.25, ge=0, le=1, description="Share of the steps over which it falls from all rows."
    )
    rounds: int = Field(2, ge=1, description="How often an episode asks for each fact.")
    facts: int = Field(8, ge=1, le=32, description="Facts per episode, at most.")
    words: int = Field(96, ge=0, description="Words between facts and questions, at most.")
    curriculum: float = Field(
        0.5, ge=0, le=1, description="Share of the steps over which facts and words grow."
    )
    answer_weight: float = Field(8.0, gt=0, description="Loss weight of an answer's tokens.")


class Specimen(Strict):
    """One specimen: a Hugging Face architecture, untouched."""

    model_type: str = Field(description="Architecture, as in transformers: opt, mamba2, ...")
    config: dict[str, Any] = Field(description="Its configuration; the vocabulary is filled in.")
    l1: float = Field(
        0.0, ge=0, description="Penalty on the sum of |h| per token, mean over FFN sites; nats."
    )
    induction: bool = Field(
        False, description="Start as an induction circuit (keepset.train.induction)."
    )


class TrainingData(Strict):
    """What specimens are trained on: one tokenizer and one stream of text for all."""

    corpora: dict[Name, Annotated[int, Field(ge=1)]] = Field(
        min_length=1, description="Corpus -> how often its calibration text is read per epoch."
    )
    text: dict[Name, TrainingSource] = Field(default_factory=dict, description="Further text.")
    vocabulary: int = Field(4096, ge=300, le=65536, description="Entries of the tokenizer.")
    sequence: int = Field(256, ge=8, description="Tokens per row.")
    seed: int = Field(0, ge=0, description="Seeds weights, documents' order and episodes.")


class Training(TrainingData):
    """How specimens are trained: one schedule for all."""

    batch: int = Field(8, ge=1, description="Rows per step.")
    steps: int = Field(ge=1, description="Steps.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak learning rate of AdamW.")
    warmup: int = Field(300, ge=0, description="Steps of linear warm-up.")
    final: float = Field(0.05, ge=0, le=1, description="Last learning rate, relative to the peak.")
    weight_decay: float = Field(0.1, ge=0, description="Of matrices; vectors have none.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    recall: Recall = Recall()
    compile: bool = Field(False, description="Use torch.compile; needs a C++ compiler.")
    log_every: int = Field(50, ge=1, description="Steps between points of the loss curve.")
    checkpoint_every: int = Field(250, ge=1, description="Steps between checkpoints.")
    specimens: dict[Name, Specimen] = Field(min_length=1)
