"""The training data: rows of text and of recall, a pure function of seed and step.

Every specimen sees the same rows in the same order, and so does a run that was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from keepset.errors import TextError
from keepset.files import store
from keepset.settings import Recall
from keepset.text.recall import NAMES, draw_episode

_MAX_ENTRIES = 65_536  # a token is stored in two bytes
_RECALL_STREAM = 1  # recall rows draw other random numbers than text rows


@dataclass(frozen=True)
class TrainingText:
    """Tokenized documents in sequence; each ends with the end-of-text token."""

    tokens: NDArray[np.uint16]
    bounds: NDArray[np.int64]
    """Document i is `tokens[bounds[i] : bounds[i + 1]]`."""
    repeats: NDArray[np.int64]
    """How often document i is read in one epoch."""
    prose: tuple[str, ...]
    """Sentences to put between the facts and the questions of recall rows."""

    @cached_property
    def epoch_tokens(self) -> int:
        """Tokens of one epoch."""
        return int((np.diff(self.bounds) * self.repeats).sum())


@dataclass(frozen=True)
class Batch:
    """One step's rows."""

    ids: Tensor
    """(rows, tokens) int64."""
    answers: Tensor
    """(rows, tokens) bool: the tokens that answer a question."""
    recall: Tensor
    """(rows,) bool: rows of recall, not of text."""


def encode_documents(
    documents: Mapping[str, Sequence[str]],
    repeats: Mapping[str, int],
    prose: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
) -> TrainingText:
    """Tokenize the documents of every source.

    Args:
        documents: Source -> its documents.
        repeats: Source -> how often its documents are read per epoch; 1 by default.
        prose: Sentences for recall rows.
        tokenizer: The specimens' tokenizer, of at most 65,536 entries.

    Raises:
        TextError: the tokenizer has more entries, or there is no document.
    """
    if len(tokenizer) > _MAX_ENTRIES:
        raise TextError(
            f"training.vocabulary: {len(tokenizer)} entries; training text holds {_MAX_ENTRIES}"
        )
    if not any(documents.values()):
        raise TextError("training: no document to train on; give corpora or text")
    end = tokenizer.eos_token_id
    parts, times = [], []
    for source, texts in documents.items():
        for encoding in tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids:
            parts.append(np.array([*encoding, end], dtype=np.uint16))
            times.append(repeats.get(source, 1))
    lengths = np.array([0, *map(len, parts)], dtype=np.int64)
    return TrainingText(
        np.concatenate(parts), lengths.cumsum(), np.array(times, dtype=np.int64), tuple(prose)
    )


@dataclass(eq=False)
class Rows:
    """Batches by step.

    Raises:
        TextError: one epoch has less text than one row, or recall rows have no sentences.
    """

    text: TrainingText
    tokenizer: PreTrainedTokenizerFast  # what the text was tokenized with
    recall: Recall  # how recall rows are made, and how many there are
    _: KW_ONLY
    rows: int  # per batch
    sequence: int  # tokens per row
    steps: int  # of the complete training, for the curriculum
    seed: int  # decides the order of the documents and every episode
    _epoch: tuple[int, NDArray[np.uint16]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.text.epoch_tokens < self.sequence:
            raise TextError(
                f"training.text: {self.text.epoch_tokens} tokens of text do not fill a row of"
                f" {self.sequence}; give more text or lower training.sequence"
            )
        if self.recall.share > 0 and self.recall.words > 0 and not self.text.prose:
            raise TextError(
                "training.text: no prose for the recall rows; add a corpus of prose, or set"
                " training.recall.words to 0"
            )

    @property
    def batch_tokens(self) -> int:
        """Tokens per step."""
        return self.rows * self.sequence

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the text that the rows are made of, without settings."""
        text = self.text
        parts = (text.tokens, text.bounds, text.repeats)
        return store.fingerprint(*(part.tobytes() for part in parts), "\n".join(text.prose))

    def batch(self, step: int) -> Batch:
        """The rows of one step, counted from 0: first those of text, then those of recall."""
        n = self.rows
        before, after = self._recall_rows(step), self._recall_rows(step + 1)
        n_text = n - (after - before)
        ids = np.zeros((n, self.sequence), dtype=np.int64)
        answers = np.zeros(ids.shape, dtype=bool)
        for row in range(n_text):
            ids[row] = self._text_row(step * n - before + row)
        for row in range(n_text, n):
            ids[row], answers[row] = self._recall_row(step, row)
        recall = torch.arange(n) >= n_text
        return Batch(torch.from_numpy(ids), torch.from_numpy(answers), recall)

    def _recall_rows(self, step: int) -> int:
        """Rows of recall in all steps before `step`.

        During the lead, the share of recall rows falls linearly from 1 to `recall.share`.
        """
        recall = self.recall
        lead = recall.lead * self.steps
        lead_steps = min(step, lead)
        decline = lead_steps * lead_steps / (2 * lead) if lead else 0.0
        shares = lead_steps - (1 - recall.share) * decline + (step - lead_steps) * recall.share
        return math.floor(shares * self.rows + 1e-9) if recall.share else 0

    def _text_row(self, number: int) -> NDArray[np.uint16]:
        per_epoch = self.text.epoch_tokens // self.sequence
        epoch, row = divmod(number, per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._epoch_stream(epoch))
        start = row * self.sequence
        return self._epoch[1][start : start + self.sequence]

    def _epoch_stream(self, epoch: int) -> NDArray[np.uint16]:
        text = self.text
        order = np.repeat(np.arange(len(text.repeats)), text.repeats)
        np.random.default_rng([self.seed, epoch]).shuffle(order)
        return np.concatenate([text.tokens[text.bounds[i] : text.bounds[i + 1]] for i in order])

    def _recall_row(self, step: int, row: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Episodes until the row is full; names repeat only after all have been used."""
        generator = np.random.default_rng([self.seed, _RECALL_STREAM, step, row])
        recall = self.recall
        facts, words = self._limits(step)
        names = list(generator.permutation(NAMES))
        ids: list[int] = []
        answers: list[bool] = []
        while len(ids) < self.sequence:
            n = int(generator.integers(1, facts + 1))
            if len(names) < n:
                names = list(generator.permutation(NAMES))
            distance = int(generator.integers(words + 1))
            episode = draw_episode(
                generator, n, distance, self.text.prose, names[:n], recall.rounds
            )
            del names[:n]
            for piece, is_answer in episode.pieces():
                tokens = self.tokenizer.encode(piece, add_special_tokens=False)
                ids += tokens
                answers += [is_answer] * len(tokens)
            ids.append(self.tokenizer.eos_token_id)
            answers.append(False)
        return np.array(ids[: self.sequence]), np.array(answers[: self.sequence])

    def _limits(self, step: int) -> tuple[int, int]:
        """Most facts and most words between; both grow linearly during the curriculum."""
        recall = self.recall
        progress = min(1.0, (step + 1) / max(1.0, recall.curriculum * self.steps))
        return max(1, round(progress * recall.facts)), round(progress * recall.words)
