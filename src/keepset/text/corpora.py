"""Split corpora so that calibration never sees the text that results are reported on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import count, islice, pairwise
from typing import Any, TypeVar

import pandas as pd

from keepset.errors import TextError
from keepset.files.store import fingerprint
from keepset.settings import Corpus, TextSource
from keepset.text.sources import read_documents

SHARES = {"calibration": 0.4, "evaluation": 0.3, "heldout": 0.3}
"""The share of a split corpus, by characters, that each split gets."""

T = TypeVar("T")

_Rows = list[tuple[int, int, str]]  # (document, section, text)

_LARGE = 0.1  # A document with a larger share of the text is cut: it could not fit into a split.
_PART = 2_000  # The least characters of a part of a cut document.
_SECTION = 8_000  # The least characters of a section: several blocks of running text.
_LONG_PARAGRAPH = 200  # A repeated paragraph of so many characters is not a coincidence.
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


def prepare_corpus(name: str, corpus: Corpus, seed: int) -> pd.DataFrame:
    """Read a corpus and split its documents.

    A corpus with one `text` source is split by document. The documents are ordered by a hash of
    `seed` and their text, and each goes to the split that is furthest behind its share (`SHARES`).
    A document with more than a tenth of the text is first cut, at blank lines, into parts of about
    2,000 characters, which then count as documents. Within a split, long documents are cut into
    sections of about 8,000 characters, and the documents take turns: so the first tokens of a
    split come from many documents, not from one long speech.

    A corpus with separate sources keeps its documents uncut and in their order.

    Calibration text that repeats a paragraph of 200 or more characters of the evaluation or
    held-out text is left out.

    Args:
        name: the corpus, for messages.
        corpus: where its text is.
        seed: decides the splits of a single source.

    Returns:
        One row per text, in reading order: `split` ("calibration", "evaluation" or "heldout"),
        `document` (its number, unique to one split), `section` (the place of the text in its
        document), `text`, and `source` (the configuration key that it was read from: "text", or the
        name of the split).

    Raises:
        TextError: a source cannot be read, or there is too little text to split.
    """
    if corpus.text is not None:
        splits = _split(name, read_documents(corpus.text, f"corpora.{name}.text"), seed)
    else:
        splits = _read_splits(name, corpus)
    splits["calibration"] = _without_repeats(name, splits)
    rows = [
        (split, *row, "text" if corpus.text is not None else split)
        for split, of_split in splits.items()
        for row in of_split
    ]
    return pd.DataFrame(rows, columns=["split", "document", "section", "text", "source"])


def join_documents(texts: Iterable[str]) -> str:
    """Join documents to one text: a blank line after each that does not end with a line end."""
    *others, last = [*texts] or [""]
    return "".join(text if text.endswith("\n") else f"{text}\n\n" for text in others) + last


def take_turns(queues: Iterable[Iterable[T]]) -> list[T]:
    """The first of each queue, then the second of each, and so on until all are empty."""
    return [*in_turn(map(iter, queues))]


def in_turn(queues: Iterable[Iterator[T]]) -> Iterator[T]:
    """The same one by one: a queue is not asked for before its turn comes."""
    while True:
        filled = []
        for queue in queues:
            for value in islice(queue, 1):
                yield value
                filled.append(queue)
        if not filled:
            return
        queues = filled


def paragraphs(text: str) -> list[str]:
    """The paragraphs of `text`, which blank lines separate, without the space around them."""
    pieces = (piece.strip() for piece in _BLANK_LINES.split(text))
    return [piece for piece in pieces if piece]


def _read_splits(name: str, corpus: Corpus) -> dict[str, _Rows]:
    splits: dict[str, _Rows] = {}
    numbers = count()
    for split in SHARES:
        source: TextSource | None = getattr(corpus, split)
        texts = read_documents(source, f"corpora.{name}.{split}") if source is not None else []
        splits[split] = [(next(numbers), 0, text) for text in texts]
    return splits


def _split(name: str, texts: list[str], seed: int) -> dict[str, _Rows]:
    def order(row: tuple[Any, ...]) -> str:
        return fingerprint(str(seed), row[-1])

    limit = _LARGE * sum(map(len, texts))
    parts = [
        part for text in texts for part in (_cut(text, _PART) if len(text) > limit else [text])
    ]
    documents = list(enumerate(dict.fromkeys(parts)))
    if len(documents) < len(SHARES):
        raise TextError(
            f"corpora.{name}.text: too little text to split into {', '.join(SHARES)}"
            f" ({sum(map(len, texts))} characters, {len(documents)} documents; one document is cut"
            " at blank lines only); give more text, or separate calibration and evaluation sources"
        )
    splits: dict[str, list[_Rows]] = {split: [] for split in SHARES}
    filled = dict.fromkeys(SHARES, 0.0)
    for number, text in sorted(documents, key=order):
        split = min(filled, key=filled.__getitem__)
        sections = [(number, place, part) for place, part in enumerate(_cut(text, _SECTION))]
        splits[split].append(sorted(sections, key=order))
        filled[split] += len(text) / SHARES[split]
    return {split: take_turns(rows) for split, rows in splits.items()}


def _cut(text: str, size: int) -> list[str]:
    """Cut `text` after blank lines into pieces of at least `size` characters."""
    bounds = [0]
    for gap in _BLANK_LINES.finditer(text):
        if min(gap.end() - bounds[-1], len(text) - gap.end()) >= size:
            bounds.append(gap.end())
    return [text[start:end] for start, end in pairwise([*bounds, len(text)])]


def _without_repeats(name: str, splits: dict[str, _Rows]) -> _Rows:
    reported: set[str] = set()
    for split in ("evaluation", "heldout"):
        reported.update(*(_long_paragraphs(text) for *_, text in splits[split]))
    kept = [row for row in splits["calibration"] if reported.isdisjoint(_long_paragraphs(row[-1]))]
    if not kept:
        raise TextError(
            f"corpora.{name}: all calibration text repeats paragraphs of the evaluation or"
            " held-out text; give sources that do not overlap"
        )
    return kept


def _long_paragraphs(text: str) -> set[str]:
    return {paragraph for paragraph in paragraphs(text) if len(paragraph) >= _LONG_PARAGRAPH}
