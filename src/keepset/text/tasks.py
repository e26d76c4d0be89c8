"""Tasks: a model predicts the end of a passage, such as its last word, with all of its tokens."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import category

import numpy as np
import pandas as pd

from keepset.errors import TextError
from keepset.files.store import fingerprint, replacing
from keepset.settings import Task, TextSource
from keepset.text.corpora import take_turns
from keepset.text.formats import format_of
from keepset.text.passages import passages
from keepset.text.recall import draw_episode, prose_sentences
from keepset.text.sources import find_files, read_records
from keepset.text.streams import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_LAST_WORD = re.compile(r"(.*\S)(\s+\S+)\s*", re.DOTALL)
# The last letter of Cyrillic: in the scripts up to it, a space stands between words.
_LAST_OF_SPACED_SCRIPTS = "\u052f"
_REMEDIES = {
    "built": "the task's max_words",
    "recall": "the task's facts or distances",
    "lambada": "its length: shorten or remove it in the task's source",
    "jsonl": "its length: shorten or remove it in the task's source",
}


@dataclass(frozen=True)
class Item:
    """One passage: `context` and `target`, joined as they are, with nothing between."""

    item: int
    """Its number within the task, from 0."""
    corpus: str
    """The corpus that it was built from; for loaded items, the task."""
    context: str
    """What the model is given."""
    target: str
    """What the model predicts, with the white space before it, if any."""
    n_facts: int | None = None
    """recall: number of facts in the context."""
    distance: int | None = None
    """recall: words between the last fact and the question."""
    kind: str = "jsonl"
    """The task's kind: lambada, jsonl, built or recall."""


@dataclass(frozen=True)
class Encoded:
    """The token ids of a passage, without special tokens."""

    ids: list[int]
    """At least one of them is the target's."""
    target_start: int
    """`ids[target_start:]` are the target's tokens; 0 only if a BOS is the whole context."""
    item: int = 0
    """The number of the item that this is."""
    remedy: str = "its length"
    """What to lower, if the passage is too long for a model."""

    def __post_init__(self) -> None:
        if not 0 <= self.target_start < len(self.ids):
            raise TextError(
                f"item {self.item}: its target begins at token {self.target_start} of"
                f" {len(self.ids)}; a passage has at least one token of the target"
            )


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
        candidates[corpus] = [(corpus, context, f" {target}") for context, target in ordered]
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
    return [Item(number, *passage, kind="built") for number, passage in enumerate(chosen)]


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
        items.append(Item(number, name, context, target, facts, distance, kind="recall"))
    return items


def load_items(name: str, task: Task) -> list[Item]:
    """Read the first `task.items` items of a source.

    Kind "lambada": rows with a passage in `source.field`, or plain text files with one passage
    per line; the last word is the target, with the white space before it. Kind "jsonl": rows with
    the fields `context` and `target`, which are joined as they are: a space that belongs between
    them must be in one of them. A context may be empty, for models with a BOS token.

    Raises:
        TextError: the source cannot be read or is empty, or a row has no context or no target.

    Warns:
        UserWarning: contexts end and targets begin within a word, though their script has spaces.
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
        if not target.strip() or (task.kind == "lambada" and not context.strip()):
            raise TextError(f"{label}: passage {number + 1} has no context or no target")
        items.append(Item(number, name, context, target, kind=task.kind))
    if not items:
        raise TextError(f"{label}: the source has no passages; give one that has some")
    _warn_of_joined_words(items, label)
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


def encode_items(
    items: Iterable[Item], tokenizer: PreTrainedTokenizerBase, bos: int | None = None
) -> list[Encoded]:
    """Encode items as lm-evaluation-harness encodes LAMBADA, without special tokens.

    The context is encoded without and with the target; the tokens that are added are the target's.
    Where a tokenizer merges across the boundary, so that the longer encoding does not start with
    the shorter one, white space at the end of the context counts as the target's; where that does
    not help, context and target are encoded separately and joined.

    Args:
        items: the items.
        tokenizer: a tokenizer.
        bos: the id of the token that the model is given before every context, if any. It is not
            among the ids that are returned; with it, a context may have no token of its own.

    Raises:
        TextError: the context or the target of an item gives no token, or one has characters that
            the tokenizer does not know; the message names the item.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    encoded = []
    for item in items:
        passage = item.context + item.target
        context, whole = ids(item.context), ids(passage)
        if whole[: len(context)] != context:
            trimmed = item.context.rstrip()
            shorter = ids(trimmed)
            if shorter and whole[: len(shorter)] == shorter:
                context = shorter
            else:
                whole = context + ids(item.target)
        _check_tokens(item, whole, len(context), tokenizer, bos)
        encoded.append(Encoded(whole, len(context), item.item, _REMEDIES[item.kind]))
    return encoded


def _check_tokens(
    item: Item, ids: list[int], start: int, tokenizer: PreTrainedTokenizerBase, bos: int | None
) -> None:
    where = f"item {item.item} ({item.context[-20:]!r} -> {item.target!r})"
    if start == 0 and bos is None:
        raise TextError(f"{where}: its context gives no token; a context needs at least one")
    if len(ids) == start:
        raise TextError(f"{where}: its target gives no token; use a tokenizer that knows its text")
    parts = {"context": (ids[:start], item.context), "target": (ids[start:], item.target)}
    for part, (tokens, text) in parts.items():
        if lost := _unknown(tokens, text, tokenizer):
            raise TextError(
                f"{where}: {lost} of its {part} is unknown to the tokenizer; leave the item out, or"
                " use a tokenizer that knows its text"
            )


def _unknown(tokens: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer makes an unknown token of, or nothing, in words; empty if it knows all."""
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokens:
        return f"a part ({tokenizer.unk_token})"
    if not tokenizer.is_fast:
        return ""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    covered = {place for span in encoding["offset_mapping"] for place in range(*span)}
    # White space, accents and marks of direction may be normalised away; no other character may.
    lost = [c for place, c in enumerate(text) if place not in covered and category(c)[0] in "LNPS"]
    return ", ".join(map(repr, dict.fromkeys(lost)))


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
    """(context, white space and last word); an empty context where there is one word."""
    match = _LAST_WORD.fullmatch(passage)
    return (match[1], match[2]) if match else ("", passage)


def _warn_of_joined_words(items: list[Item], label: str) -> None:
    joined = [item for item in items if _is_inside_word(item.context[-1:], item.target[0])]
    if joined:
        first = joined[0]
        warnings.warn(
            f"{label}: {len(joined)} of {len(items)} items join two letters without a space, first"
            f" passage {first.item + 1} ({first.context[-12:]!r} + {first.target[:12]!r}); context"
            " and target are joined as they are: write the space into the file where words meet",
            stacklevel=3,
        )


def _is_inside_word(left: str, right: str) -> bool:
    return all(c.isalnum() and c <= _LAST_OF_SPACED_SCRIPTS for c in (left, right))
