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

# A token depends on about a word of text around it, and no real word is this long. So a cut in the
# text cannot change the tokens that end this many characters before it.
_MARGIN = 2_000
_CHARACTERS_PER_TOKEN = 6


@dataclass(frozen=True)
class Blocks:
    """Blocks of T tokens of one corpus for one tokenizer, without special tokens.

    The first token of a block is never predicted: each block has T - 1 predicted tokens.
    """

    calibration: torch.Tensor
    """(n, T) int64: keep sets and thresholds are chosen on these."""
    lead_in: torch.Tensor
    """(1, T) int64: the text before the first evaluation block, for causal windows; not scored."""
    evaluation: torch.Tensor
    """(m, T) int64: results are reported on these consecutive blocks."""
    n_tokens: torch.Tensor
    """(m,) int64: predicted tokens of each evaluation block."""
    n_words: torch.Tensor
    """(m,) int64: words, separated by white space, in the text of the predicted tokens."""
    n_bytes: torch.Tensor
    """(m,) int64: UTF-8 bytes of the text of the predicted tokens."""
    fingerprint: str
    """SHA-256 over all fields above and their shapes, hence over T."""

    def joined(self, factor: int) -> Blocks | None:
        """Join every `factor` consecutive evaluation blocks; None if there are fewer.

        Words and bytes are sums over the parts. They leave out the first token of each part,
        which the part did not predict.
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
    """The first blocks of a split: token ids (k, T), and where in `text` each token ends."""

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

    def first(self, split: str, max_blocks: int, min_blocks: int = 1) -> _Stream:
        """The first blocks of a split; tokenizes only about as much text as they need.

        Raises:
            TextError: the split has fewer than `min_blocks` blocks.
        """
        text = join_documents(self.table.loc[self.table["split"] == split, "text"])
        max_tokens = max_blocks * self.block
        length = _CHARACTERS_PER_TOKEN * max_tokens + _MARGIN
        ids, ends = self._tokenize(text, length)
        while len(ids) < max_tokens and length < len(text):
            length *= 2
            ids, ends = self._tokenize(text, length)
        n_blocks = min(len(ids) // self.block, max_blocks)
        if n_blocks < min_blocks:
            raise TextError(
                f"{self.label}: the {split} text has {len(ids)} tokens, {min_blocks * self.block}"
                " are needed; give more text, or a smaller block"
            )
        n_tokens = n_blocks * self.block
        return _Stream(text, ids[:n_tokens].view(n_blocks, -1), ends[:n_tokens].view(n_blocks, -1))

    def _tokenize(self, text: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and ends of the tokens of `text[:length]` that do not depend on the rest."""
        encoded = self.tokenizer(
            text[:length], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids = torch.tensor(encoded["input_ids"], dtype=torch.int64)
        ends = torch.tensor([end for _, end in encoded["offset_mapping"]], dtype=torch.int64)
        ends = ends.cummax(0).values if len(ends) else ends
        n_certain = len(ids) if length >= len(text) else int((ends <= length - _MARGIN).sum())
        return ids[:n_certain], ends[:n_certain]


def make_blocks(
    name: str,
    table: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    block: int,
    calibration_tokens: int,
    evaluation_tokens: int,
) -> Blocks:
    """Cut the calibration and evaluation text of a corpus into blocks of `block` tokens.

    The documents of a split are joined (`join_documents`) and tokenized as one stream. The stream
    is cut into consecutive blocks; an incomplete last block is dropped.

    Where one source was split, the lead-in is the first block of the evaluation stream, and the
    evaluation blocks follow it. Where evaluation has a separate source, its blocks start at the
    first token, as in published results; the lead-in is then the block after the calibration
    blocks or, if there is no more calibration text, the last calibration block.

    Args:
        name: the corpus, for messages.
        table: as `prepare_corpus` returns it; without a `source` column: one source, split.
        tokenizer: a fast tokenizer.
        block: tokens per block, T.
        calibration_tokens: rounded up to complete blocks.
        evaluation_tokens: rounded up to complete blocks.

    Raises:
        TextError: a split is too short for one block, or the tokenizer is not a fast one.

    Warns:
        UserWarning: a split has fewer blocks than requested; all of them are used.
    """
    n_calibration, n_evaluation = -(-calibration_tokens // block), -(-evaluation_tokens // block)
    streams = _Streams(f"corpora.{name}", table, tokenizer, block)
    calibration = streams.first("calibration", n_calibration + 1)
    if "source" in table and (table["source"] == "evaluation").any():
        evaluation, n_skipped = streams.first("evaluation", n_evaluation), 0
        lead_in = calibration.ids[-1:]
    else:
        evaluation, n_skipped = streams.first("evaluation", n_evaluation + 1, min_blocks=2), 1
        lead_in = evaluation.ids[:1]
    blocks = _blocks(calibration.ids[:n_calibration], lead_in, evaluation, n_skipped)
    for split, n_wanted in (("calibration", n_calibration), ("evaluation", n_evaluation)):
        if (n_blocks := len(getattr(blocks, split))) < n_wanted:
            warnings.warn(
                f"corpora.{name}: {split} has {n_blocks} blocks of {block} tokens, {n_wanted} were"
                f" requested; using {n_blocks}",
                stacklevel=2,
            )
    return blocks


def cut_blocks(
    documents: list[str], tokenizer: PreTrainedTokenizerBase, block: int, label: str = "text"
) -> torch.Tensor:
    """Join texts and cut them into consecutive blocks, (n, T) int64; a shorter rest is dropped.

    Args:
        documents: the texts.
        tokenizer: a fast tokenizer.
        block: tokens per block, T.
        label: where the texts come from, for messages.

    Raises:
        TextError: the text is too short for one block, or the tokenizer is not a fast one.

    Example:
        >>> from keepset import cut_blocks, load
        >>> _, tokenizer = load("specimens/relu", dtype="float32")
        >>> blocks = cut_blocks(["The river is long. " * 40], tokenizer, block=32)
        >>> blocks.shape[1], tokenizer.decode(blocks[0, :4])
        (32, 'The river is')
    """
    table = pd.DataFrame({"split": "evaluation", "text": documents})
    # A token has at least one byte, so there are at most this many blocks.
    max_blocks = len(join_documents(documents).encode())
    return _Streams(label, table, tokenizer, block).first("evaluation", max_blocks).ids


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


def _blocks(
    calibration: torch.Tensor, lead_in: torch.Tensor, evaluation: _Stream, n_skipped: int
) -> Blocks:
    ids = evaluation.ids[n_skipped:]
    # From end to end: some tokenizers leave the space before a word out of its offsets.
    spans = evaluation.ends[n_skipped:, [0, -1]].tolist()
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


def _fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    parts: list[bytes | str] = []
    for name in _TENSORS:
        values = tensors[name].contiguous().numpy().astype("<i8")
        parts += [name, str(values.shape), values.tobytes()]
    return fingerprint(*parts)
