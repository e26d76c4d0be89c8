"""Turn the splits of a corpus into blocks of tokens for one tokenizer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from keepset.errors import TextError
from keepset.files.store import fingerprint, replacing
from keepset.text.corpora import join_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A token depends on the text a word or so around it. Tokens that end this many characters before
# a cut are therefore those of the uncut text; no word of real text comes near it.
_MARGIN = 2_000
_CHARACTERS_PER_TOKEN = 6


@dataclass(frozen=True)
class Blocks:
    """Blocks of T tokens of one corpus for one tokenizer; no special tokens.

    The first token of a block is never predicted, so each block has T - 1 predicted tokens.
    """

    calibration: torch.Tensor
    """(n, T) int64: where keep sets and thresholds are chosen."""
    lead_in: torch.Tensor
    """(1, T) int64: stands before the first evaluation block for causal windows; not scored."""
    evaluation: torch.Tensor
    """(m, T) int64: consecutive blocks that results are reported on."""
    n_tokens: torch.Tensor
    """(m,) int64: predicted tokens of each evaluation block."""
    n_words: torch.Tensor
    """(m,) int64: words, parted by white space, in the text of the predicted tokens."""
    n_bytes: torch.Tensor
    """(m,) int64: UTF-8 bytes of the text of the predicted tokens."""
    fingerprint: str
    """SHA-256 over all of the above, T included: it is in their shapes."""

    def joined(self, factor: int) -> Blocks | None:
        """`factor` consecutive evaluation blocks as one; None where there are too few.

        Words and bytes are sums over the parts: those of the tokens in between, which the parts
        did not predict, are not known and not in them.
        """
        count = len(self.evaluation) // factor
        if count == 0:
            return None
        parts = slice(0, count * factor)
        length = factor * self.evaluation.shape[1]
        return replace(
            self,
            evaluation=self.evaluation[parts].reshape(count, length),
            n_tokens=torch.full((count,), length - 1),
            n_words=self.n_words[parts].view(count, factor).sum(dim=1),
            n_bytes=self.n_bytes[parts].view(count, factor).sum(dim=1),
        )


@dataclass(frozen=True)
class _Stream:
    """The first blocks of a split: ids (k, T), and the character that each token ends at."""

    text: str
    ids: torch.Tensor
    ends: torch.Tensor


@dataclass(frozen=True)
class _Streams:
    """The splits of a corpus as token streams."""

    label: str
    table: pd.DataFrame
    tokenizer: PreTrainedTokenizerBase
    block: int

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise TextError(
                f"{self.label}: tokenizer {self.tokenizer.name_or_path} gives no character"
                " offsets; use a model with a fast tokenizer (tokenizer.json)"
            )

    def first(self, split: str, blocks: int, least: int = 1) -> _Stream:
        """The first `blocks` blocks of a split, or as many as it has if that is `least` or more.

        Only about as much text is tokenised as that takes.
        """
        text = join_documents(self.table.loc[self.table["split"] == split, "text"])
        wanted = blocks * self.block
        length = _CHARACTERS_PER_TOKEN * wanted + _MARGIN
        ids, ends = self._tokenise(text, length)
        while len(ids) < wanted and length < len(text):
            length *= 2
            ids, ends = self._tokenise(text, length)
        found = min(len(ids) // self.block, blocks)
        if found < least:
            raise TextError(
                f"{self.label}: the {split} text has {len(ids)} tokens, {least * self.block}"
                " are needed; give more text, or a smaller block"
            )
        size = found * self.block
        return _Stream(text, ids[:size].view(found, -1), ends[:size].view(found, -1))

    def _tokenise(self, text: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and ends of those tokens of `text[:length]` that the rest of `text` cannot change."""
        encoded = self.tokenizer(
            text[:length], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids = torch.tensor(encoded["input_ids"], dtype=torch.int64)
        ends = torch.tensor([end for _, end in encoded["offset_mapping"]], dtype=torch.int64)
        ends = ends.cummax(0).values if len(ends) else ends
        settled = len(ids) if length >= len(text) else int((ends <= length - _MARGIN).sum())
        return ids[:settled], ends[:settled]


def make_blocks(
    name: str,
    table: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    block: int,
    calibration_tokens: int,
    evaluation_tokens: int,
) -> Blocks:
    """Cut the calibration and evaluation text of a corpus into blocks of `block` tokens.

    The documents of a split are joined (`join_documents`) and tokenised as one stream, which is
    cut into consecutive blocks; the last incomplete one is dropped.

    The lead-in of a corpus that was split from one source is the first block of its evaluation
    stream, and the evaluation blocks follow it. With a source of its own, evaluation starts at
    the first token of that source, so that the blocks are those anyone else cuts from it; the
    lead-in is then the calibration text right after the calibration blocks or, where that text
    is used up, the last calibration block.

    Args:
        name: the corpus, for messages.
        table: as `prepare_corpus` returns it; without a `source` column it counts as split from
            one source.
        tokenizer: a fast tokenizer.
        block: tokens per block, T.
        calibration_tokens: tokens wanted, rounded up to whole blocks.
        evaluation_tokens: tokens wanted, rounded up to whole blocks.

    Raises:
        TextError: a split is too short for one block, or the tokenizer is not a fast one.

    Warns:
        UserWarning: a split has fewer tokens than asked for; all of its blocks are used.
    """
    n_calibration, n_evaluation = -(-calibration_tokens // block), -(-evaluation_tokens // block)
    streams = _Streams(f"corpora.{name}", table, tokenizer, block)
    calibration = streams.first("calibration", n_calibration + 1)
    if _has_own_evaluation(table):
        evaluation, scored = streams.first("evaluation", n_evaluation), slice(0, n_evaluation)
        lead_in = calibration.ids[-1:]
    else:
        evaluation = streams.first("evaluation", n_evaluation + 1, least=2)
        lead_in, scored = evaluation.ids[:1], slice(1, n_evaluation + 1)
    blocks = _blocks(calibration.ids[:n_calibration], lead_in, evaluation, scored)
    _warn_if_fewer(name, "calibration", len(blocks.calibration), n_calibration, block)
    _warn_if_fewer(name, "evaluation", len(blocks.evaluation), n_evaluation, block)
    return blocks


def cut_blocks(
    documents: list[str], tokenizer: PreTrainedTokenizerBase, block: int, label: str
) -> torch.Tensor:
    """Cut whole texts, joined, into consecutive blocks: (n, T) int64; a shorter rest is dropped.

    Args:
        documents: the texts.
        tokenizer: a fast tokenizer.
        block: tokens per block, T.
        label: where the texts come from, for messages.

    Raises:
        TextError: the text is too short for one block, or the tokenizer is not a fast one.
    """
    table = pd.DataFrame({"split": "evaluation", "text": documents})
    # No byte-level token is shorter than a byte, so this many blocks are never reached.
    most = len(join_documents(documents).encode())
    return _Streams(label, table, tokenizer, block).first("evaluation", most).ids


def save_blocks(blocks: Blocks, path: str | Path) -> None:
    """Write blocks as safetensors, atomically; the fingerprint goes into the metadata."""
    tensors = {name: getattr(blocks, name).contiguous().clone() for name in _TENSORS}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"fingerprint": blocks.fingerprint})


def load_blocks(path: str | Path) -> Blocks:
    """Read blocks.

    Raises:
        TextError: the file is missing, corrupt, or does not match its fingerprint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
            expected = (file.metadata() or {})["fingerprint"]
    except FileNotFoundError:
        raise TextError(f"{path}: no such file of blocks; make it first") from None
    except (OSError, SafetensorError, KeyError) as error:
        raise TextError(f"{path}: not a file of blocks ({error}); delete and remake it") from None
    if _fingerprint(tensors) != expected:
        raise TextError(f"{path}: the blocks do not match their fingerprint; delete and remake it")
    return Blocks(**tensors, fingerprint=expected)


_TENSORS = tuple(field.name for field in fields(Blocks) if field.name != "fingerprint")


def _has_own_evaluation(table: pd.DataFrame) -> bool:
    return "source" in table and bool((table["source"] == "evaluation").any())


def _blocks(
    calibration: torch.Tensor, lead_in: torch.Tensor, evaluation: _Stream, scored: slice
) -> Blocks:
    ids = evaluation.ids[scored]
    # Ends alone mark the bounds: some tokenizers leave the space before a word out of its offsets.
    spans = evaluation.ends[scored][:, [0, -1]].tolist()
    texts = [evaluation.text[start:end] for start, end in spans]
    tensors = {
        "calibration": calibration,
        "lead_in": lead_in,
        "evaluation": ids,
        "n_tokens": torch.full((len(ids),), ids.shape[1] - 1),
        "n_words": torch.tensor([len(text.split()) for text in texts]),
        "n_bytes": torch.tensor([len(text.encode()) for text in texts]),
    }
    return Blocks(**tensors, fingerprint=_fingerprint(tensors))


def _warn_if_fewer(name: str, split: str, found: int, wanted: int, block: int) -> None:
    if found < wanted:
        warnings.warn(
            f"corpora.{name}: {split} has {found} blocks of {block} tokens, {wanted} were asked"
            " for; using what there is",
            stacklevel=3,
        )


def _fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    parts: list[bytes | str] = []
    for name in _TENSORS:
        values = tensors[name].contiguous().numpy().astype("<i8")
        parts += [name, str(values.shape), values.tobytes()]
    return fingerprint(*parts)
