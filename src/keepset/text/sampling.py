"""Where in a split's text its blocks of tokens are taken."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from keepset.errors import TextError
from keepset.files.store import fingerprint
from keepset.text.corpora import in_turn, join_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A token depends on about a word of text around it, and no real word is this long. So a cut in the
# text cannot change the tokens that end this many characters before it.
_MARGIN = 2_000
_CHARACTERS_PER_TOKEN = 6
# A document is read this many blocks at a time: far enough for places that differ, and no further
# than a block or two of it need.
_STRETCH = 32


@dataclass(frozen=True)
class Tokens:
    """The first tokens of a text: ids (n,) int64, and the character of `text` where each ends."""

    text: str
    ids: Tensor
    ends: Tensor

    def begin(self, token: int) -> int:
        """The character where a token begins: where the one before ends.

        Some tokenizers leave the space before a word out of its offsets; no character is lost so.
        """
        return int(self.ends[token - 1]) if token else 0


@dataclass(frozen=True)
class Cut:
    """One block of a text.

    Attributes:
        tokens: The text that it is cut from.
        start: Its first token there.
        length: Its number of tokens, T.
        document: The number of its document.
    """

    tokens: Tokens
    start: int
    length: int
    document: int

    @property
    def ids(self) -> Tensor:
        """(T,) int64."""
        return self.tokens.ids[self.start : self.start + self.length]

    def before(self, count: int) -> Tensor:
        """The `count` tokens before it, (count,) int64, fewer at the start of the text."""
        return self.tokens.ids[max(0, self.start - count) : self.start]

    def text_after(self, skipped: int) -> str:
        """Its text without the first `skipped` tokens."""
        last = self.start + self.length - 1
        return self.tokens.text[
            self.tokens.begin(self.start + skipped) : int(self.tokens.ends[last])
        ]


@dataclass(frozen=True)
class Sampler:
    """Takes blocks from the splits of a corpus.

    Attributes:
        label: The corpus, for messages.
        tokenizer: A fast tokenizer.
        seed: Decides the order of documents and the places in them.

    Raises:
        TextError: the tokenizer is not a fast one.
    """

    label: str
    tokenizer: PreTrainedTokenizerBase
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise TextError(
                f"{self.label}: tokenizer {self.tokenizer.name_or_path} gives no character"
                " offsets; use a model with a fast tokenizer (tokenizer.json)"
            )

    def read(self, text: str, max_tokens: int) -> Tokens:
        """The first tokens of a text; tokenizes only about as much of it as they need."""
        length = _CHARACTERS_PER_TOKEN * max_tokens + _MARGIN
        tokens = self._tokenize(text, length)
        while len(tokens.ids) < max_tokens and length < len(text):
            length *= 2
            tokens = self._tokenize(text, length)
        return Tokens(text, tokens.ids[:max_tokens], tokens.ends[:max_tokens])

    def _tokenize(self, text: str, length: int) -> Tokens:
        """The tokens of `text[:length]` that do not depend on the rest."""
        encoded = self.tokenizer(
            text[:length], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids = torch.tensor(encoded["input_ids"], dtype=torch.int64)
        ends = torch.tensor([end for _, end in encoded["offset_mapping"]], dtype=torch.int64)
        ends = ends.cummax(0).values if len(ends) else ends
        n_certain = len(ids) if length >= len(text) else int((ends <= length - _MARGIN).sum())
        return Tokens(text, ids[:n_certain], ends[:n_certain])

    def from_stream(self, rows: pd.DataFrame, block: int, count: int, skipped: int) -> list[Cut]:
        """The first `count` consecutive blocks of the joined documents, in their order.

        A block is of the document that it begins in.

        Args:
            rows: The rows of one split, as `prepare_corpus` returns them.
            block: Tokens per block.
            count: Blocks wanted; fewer come where the text is shorter.
            skipped: Tokens before the first block.
        """
        texts = rows["text"].tolist()
        # What `join_documents` puts after a document belongs to it.
        joined = [join_documents([text, ""]) for text in texts]
        starts = [0, *accumulate(map(len, joined))]
        tokens = self.read(join_documents(texts), skipped + count * block)
        cuts = []
        for start in range(skipped, len(tokens.ids) - block + 1, block):
            row = bisect_right(starts, tokens.begin(start), hi=len(texts)) - 1
            cuts.append(Cut(tokens, start, block, int(rows["document"].iloc[row])))
        return cuts

    def from_documents(self, rows: pd.DataFrame, block: int, lead: int) -> Iterator[Cut]:
        """Blocks from as many documents as there are: one of each, then a second of each, ...

        Documents come in a seeded order, short ones joined with the next. Each is tokenized on its
        own, from its start; its blocks follow each other from token `lead` on, and are taken in a
        seeded order. So the first blocks are the same however many are taken.

        Args:
            rows: The rows of one split, as `prepare_corpus` returns them.
            block: Tokens per block.
            lead: Tokens of a document that stand before its first block.
        """
        documents = enumerate(self._documents(rows, lead + block))
        return in_turn(self._places(number, text, block, lead) for number, text in documents)

    def _documents(self, rows: pd.DataFrame, needed: int) -> Iterator[str]:
        """The documents, of at least `needed` tokens each; what is left at the end is dropped."""
        # A document that is there twice would count as two.
        texts = sorted(
            {*whole_documents(rows).values()}, key=lambda text: fingerprint(str(self.seed), text)
        )
        parts: list[str] = []
        n_tokens = 0
        for text in texts:
            parts.append(text)
            # Each part is counted once, with the two line ends that may follow it: only where that
            # could be enough are the parts tokenized together.
            n_tokens += len(self.read(text, needed).ids) + 2
            if n_tokens < needed:
                continue
            joined = join_documents(parts)
            if len(self.read(joined, needed).ids) >= needed:
                yield joined
                parts, n_tokens = [], 0

    def _places(self, number: int, text: str, block: int, lead: int) -> Iterator[Cut]:
        """The blocks of a document, a stretch of it after the other, each in a seeded order."""
        random = np.random.default_rng(int(fingerprint(str(self.seed), text)[:16], 16))
        n_before, n_wanted = 0, _STRETCH
        while True:
            tokens = self.read(text, lead + n_wanted * block)
            n_blocks = max(0, len(tokens.ids) - lead) // block
            for first in range(n_before, n_blocks, _STRETCH):
                last = min(first + _STRETCH, n_blocks)
                for place in random.permutation(np.arange(first, last)).tolist():
                    yield Cut(tokens, lead + place * block, block, number)
            if n_blocks < n_wanted:
                return
            n_before, n_wanted = n_blocks, 2 * n_wanted


def whole_documents(rows: pd.DataFrame) -> dict[int, str]:
    """Number -> text of each document, put together from its sections; in the order of the rows."""
    ordered = rows.sort_values("section", kind="stable") if "section" in rows else rows
    texts = {int(number): "" for number in rows["document"]}
    for number, text in zip(ordered["document"], ordered["text"], strict=True):
        texts[int(number)] += text
    return texts
