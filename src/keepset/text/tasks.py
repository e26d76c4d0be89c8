"""Tasks: the whole last word of a text is to be predicted."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
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
    """The corpus it was built from; for loaded items, the task."""
    context: str
    """Ends without a space."""
    target: str
    """What is to be predicted; starts and ends without a space."""
    n_facts: int | None = None
    """recall: how many facts the context states."""
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

    Each corpus gives as many items as the others while it can; the rest come from those that
    have more. Which passages are taken, and their order, only `seed` and their text decide.
    See `keepset.text.passages.passages` for what makes a passage.

    Args:
        name: the task, for messages.
        task: of kind "built".
        corpora: the table of each corpus, as `prepare_corpus` returns it.
        seed: decides which passages are taken.

    Raises:
        TextError: a corpus is not there, or no passage fits.

    Warns:
        UserWarning: there are fewer items than asked for.
    """
    found = {corpus: _passages(name, task, corpora, corpus, seed) for corpus in task.corpora or ()}
    queues = ([(corpus, *pair) for pair in pairs] for corpus, pairs in found.items())
    chosen = take_turns(queues)[: task.items]
    counts = ", ".join(f"{corpus} {len(pairs)}" for corpus, pairs in found.items())
    if not chosen:
        raise TextError(
            f"tasks.{name}: no passage of {task.min_words} to {task.max_words} words in the"
            f" held-out text ({counts}) ends with a word said before; widen min_words and"
            " max_words, or add corpora of prose"
        )
    if len(chosen) < task.items:
        warnings.warn(
            f"tasks.{name}: {task.items} items were asked for, {len(chosen)} found ({counts})",
            stacklevel=2,
        )
    return [Item(number, *passage) for number, passage in enumerate(chosen)]


def build_recall(
    name: str, task: Task, corpora: Mapping[str, pd.DataFrame], seed: int
) -> list[Item]:
    """Make recall items: facts, held-out prose, and one question (`keepset.text.recall`).

    Numbers of facts and distances are crossed, with as many items of each pair.

    Args:
        name: the task, for messages.
        task: of kind "recall".
        corpora: the table of each corpus, as `prepare_corpus` returns it.
        seed: decides every item.

    Raises:
        TextError: a corpus is not there, or its held-out text has no prose.
    """
    documents = []
    for corpus in task.corpora or ():
        if corpus not in corpora:
            raise TextError(f"tasks.{name}.corpora: {corpus} is not there; prepare it first")
        table = corpora[corpus]
        documents += table.loc[table["split"] == "heldout", "text"].tolist()
    prose = prose_sentences(documents)
    if not prose and max(task.distances) > 0:
        raise TextError(
            f"tasks.{name}: no prose in the held-out text to stand between facts and questions;"
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
    per line; the last word, parted by white space, is the target. Kind "jsonl": rows with the
    fields `context` and `target`.

    Raises:
        TextError: the source cannot be read, a row has no context or no target, or none is there.
    """
    label = f"tasks.{name}.source"
    if task.source is None:
        raise TextError(f"{label}: needed for kind {task.kind}")
    if task.kind == "jsonl":
        pairs: Iterator[tuple[str, ...]] = read_records(task.source, ("context", "target"), label)
    else:
        pairs = (_last_word(text) for text in _lambada_texts(task.source, label))
    items = []
    for number, (context, target) in enumerate(islice(pairs, task.items)):
        if not context.strip() or not target.strip():
            raise TextError(f"{label}: passage {number + 1} has no context or no target")
        items.append(Item(number, name, context.rstrip(), target.strip()))
    if not items:
        raise TextError(f"{label}: no passages there; give a source with some")
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

    The context, and the context with the target, are encoded; what the second adds to the first
    are the target's tokens. Where a tokenizer merges across the space between them, so that the
    second does not begin with the first, the two parts are encoded each for itself and joined.
    """
    return [_encode(item, tokenizer) for item in items]


def _passages(
    name: str, task: Task, corpora: Mapping[str, pd.DataFrame], corpus: str, seed: int
) -> list[tuple[str, str]]:
    if corpus not in corpora:
        raise TextError(f"tasks.{name}.corpora: {corpus} is not there; prepare it first")
    table = corpora[corpus]
    texts = table.loc[table["split"] == "heldout", "text"]
    pairs = {pair for text in texts for pair in passages(text, task.min_words, task.max_words)}
    return sorted(pairs, key=lambda pair: fingerprint(str(seed), *pair))


def _lambada_texts(source: TextSource, label: str) -> Iterator[str]:
    plain = source.hub is None and all(
        format_of(path, source.format, label) == "text" for path in find_files(source, label)
    )
    if not plain:
        yield from (row[0] for row in read_records(source, (source.field,), label))
        return
    for path in find_files(source, label):
        yield from (line for line in read_text(path, label).split("\n") if line.strip())


def _last_word(passage: str) -> tuple[str, str]:
    *context, target = passage.rsplit(maxsplit=1) or [""]
    return "".join(context), target


def _encode(item: Item, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    continuation = f" {item.target}"
    context, whole = ids(item.context), ids(item.context + continuation)
    if whole[: len(context)] != context:
        whole = context + ids(continuation)
    return Encoded(whole, len(context))
