"""Tasks: a model predicts the last word of a passage, with all of its tokens."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from keepset.errors import TextError
from keepset.files.store import fingerprint, replacing
from keepset.settings import Task, TextSource
from keepset.text.corpora import take_turns
from keepset.text.formats import format_of, read_text
from keepset.text.passages import passages
from keepset.text.recall import draw_episode, prose_sentences
from keepset.text.sources import find_files, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Item:
    """One passage: `context`, a space, `target`."""

    item: int
    """Its number within the task, from 0."""
    corpus: str
    """The corpus that it was built from; for loaded items, the task."""
    context: str
    """Does not end with a space."""
    target: str
    """What the model predicts; no space at either end."""
    n_facts: int | None = None
    """recall: number of facts in the context."""
    distance: int | None = None
    """recall: words between the last fact and the question."""


@dataclass(frozen=True)
class Encoded:
    """The token ids of a passage, without special tokens."""

    ids: list[int]
    target_start: int
    """`ids[target_start:]` are the target's tokens; at least 1."""


def build_items(
    name: str, task: Task, corpora: Mapping[str, pd.DataFrame], seed: int
) -> list[Item]:
    """Make items from the held-out text of the task's corpora.

    All corpora give the same number of items; where one has too few, the others fill up. A hash
    of `seed` and their text orders the passages (see `keepset.text.passages.passages`).

    Args:
        name: the task, for messages.
        task: of kind "built".
        corpora: the table of each corpus, as `prepare_corpus` returns it.
        seed: decides which passages are taken.

    Raises:
        TextError: a corpus is missing, or no passage fits.

    Warns:
        UserWarning: there are fewer items than requested.
    """
    candidates = {}
    for corpus in task.corpora or ():
        texts = _heldout_texts(name, corpora, corpus)
        pairs = {pair for text in texts for pair in passages(text, task.min_words, task.max_words)}
        ordered = sorted(pairs, key=lambda pair: fingerprint(str(seed), *pair))
        candidates[corpus] = [(corpus, *pair) for pair in ordered]
    chosen = take_turns(candidates.values())[: task.items]
    counts = ", ".join(f"{corpus} {len(queue)}" for corpus, queue in candidates.items())
    if not chosen:
        raise TextError(
            f"tasks.{name}: no passage of {task.min_words} to {task.max_words} words in the"
            f" held-out text ({counts}) ends with a word used before; widen min_words and"
            " max_words, or add corpora of prose"
        )
    if len(chosen) < task.items:
        warnings.warn(
            f"tasks.{name}: {task.items} items were requested, {len(chosen)} found ({counts})",
            stacklevel=2,
        )
    return [Item(number, *passage) for number, passage in enumerate(chosen)]


def build_recall(
    name: str, task: Task, corpora: Mapping[str, pd.DataFrame], seed: int
) -> list[Item]:
    """Make recall items: facts, held-out prose, and one question (`keepset.text.recall`).

    Every combination of `task.facts` and `task.distances` has the same number of items.

    Args:
        name: the task, for messages.
        task: of kind "recall".
        corpora: the table of each corpus, as `prepare_corpus` returns it.
        seed: decides every item.

    Raises:
        TextError: a corpus is missing, or the held-out text has no prose.
    """
    corpus_texts = (_heldout_texts(name, corpora, corpus) for corpus in task.corpora or ())
    prose = prose_sentences(chain.from_iterable(corpus_texts))
    if not prose and max(task.distances) > 0:
        raise TextError(
            f"tasks.{name}: no prose in the held-out text to put between facts and questions;"
            " add corpora of prose, or set distances to [0]"
        )
    pairs = [(facts, distance) for facts in task.facts for distance in task.distances]
    items = []
    for number in range(task.items):
        facts, distance = pairs[number % len(pairs)]
        generator = np.random.default_rng([seed, number])
        context, target = draw_episode(generator, facts, distance, prose).question()
        items.append(Item(number, name, context, target, facts, distance))
    return items


def load_items(name: str, task: Task) -> list[Item]:
    """Read the first `task.items` items of a source.

    Kind "lambada": rows with a passage in `source.field`, or plain text files with one passage
    per line; the last word, after white space, is the target. Kind "jsonl": rows with the
    fields `context` and `target`.

    Raises:
        TextError: the source cannot be read or is empty, or a row has no context or no target.
    """
    label = f"tasks.{name}.source"
    if task.source is None:
        raise TextError(f"{label}: needed for kind {task.kind}")
    if task.kind == "jsonl":
        pairs: Iterator[tuple[str, ...]] = read_records(task.source, ("context", "target"), label)
    else:
        pairs = (_split_last_word(text) for text in _lambada_texts(task.source, label))
    items = []
    for number, (context, target) in enumerate(islice(pairs, task.items)):
        if not context.strip() or not target.strip():
            raise TextError(f"{label}: passage {number + 1} has no context or no target")
        items.append(Item(number, name, context.rstrip(), target.strip()))
    if not items:
        raise TextError(f"{label}: the source has no passages; give one that has some")
    return items


def save_items(items: Iterable[Item], path: str | Path) -> None:
    """Write items as JSON lines, atomically."""
    lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items]
    with replacing(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def read_items(path: str | Path) -> list[Item]:
    """Read items that `save_items` wrote.

    Raises:
        TextError: the file is missing or corrupt.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
        return [Item(**json.loads(line)) for line in lines if line]
    except FileNotFoundError:
        raise TextError(f"{path}: no such file of items; make it first") from None
    except (OSError, ValueError, TypeError) as error:
        raise TextError(f"{path}: not a file of items ({error}); delete and remake it") from None


def encode_items(items: Iterable[Item], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Encode items as lm-evaluation-harness encodes LAMBADA, without special tokens.

    The context is encoded without and with the target; the tokens that are added are the target's.
    Where a tokenizer merges across the space between them, so that the longer encoding does not
    start with the shorter one, context and target are encoded separately and joined.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    encoded = []
    for item in items:
        continuation = f" {item.target}"
        context, passage = ids(item.context), ids(item.context + continuation)
        if passage[: len(context)] != context:
            passage = context + ids(continuation)
        encoded.append(Encoded(passage, len(context)))
    return encoded


def _heldout_texts(name: str, corpora: Mapping[str, pd.DataFrame], corpus: str) -> list[str]:
    if corpus not in corpora:
        raise TextError(f"tasks.{name}.corpora: {corpus} is missing; prepare it first")
    table = corpora[corpus]
    return table.loc[table["split"] == "heldout", "text"].tolist()


def _lambada_texts(source: TextSource, label: str) -> Iterator[str]:
    files = [] if source.hub is not None else find_files(source, label)
    if files and all(format_of(path, source.format, label) == "text" for path in files):
        lines = (line for path in files for line in read_text(path, label).split("\n"))
        yield from (line for line in lines if line.strip())
    else:
        yield from (row[0] for row in read_records(source, (source.field,), label))


def _split_last_word(passage: str) -> tuple[str, str]:
    *context, target = passage.rsplit(maxsplit=1) or [""]
    return "".join(context), target
