"""Turn the splits of a corpus into blocks of tokens for one tokenizer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from keepset.errors import TextError
from keepset.files.store import fingerprint, replacing
from keepset.text.corpora import join_documents
from keepset.text.sampling import Cut, Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Passages:
    """Text that results are reported on, as blocks of T text tokens without special tokens."""

    evaluation: Tensor
    """(m, T) int64."""
    document: Tensor
    """(m,) int64: the document that each block is from, numbered as they appear."""
    lead_in: Tensor
    """(m, L) int64: the text before each block, for causal windows; never scored."""
    n_tokens: Tensor
    """(m,) int64: predicted tokens of each block."""
    n_words: Tensor
    """(m,) int64: words, separated by white space, in the text of the predicted tokens."""
    n_bytes: Tensor
    """(m,) int64: UTF-8 bytes of the text of the predicted tokens."""
    n_core: int
    """The first `n_core` blocks are run under every rule, the others dense and under dynamic ones,
    where claims of sameness need more text."""


@dataclass(frozen=True)
class Blocks(Passages):
    """The blocks of one corpus for one tokenizer.

    With a BOS token, which a runner puts before every block, the first token of a block is
    predicted too: each block has T predicted tokens, T - 1 without.
    """

    calibration: Tensor
    """(n, T) int64: keep sets and thresholds are chosen on these."""
    calibration_document: Tensor
    """(n,) int64: the document that each is from, numbered apart from those of `document`."""
    bos: int | None
    """The model's BOS token, which is in no block."""
    longer: Mapping[int, Passages]
    """Factor -> passages of factor * T tokens, about as many tokens as the core blocks have. None
    where no document, or text, is so long."""
    fingerprint: str
    """SHA-256 over all fields above and their shapes, hence over T."""


@dataclass(frozen=True)
class Cutting:
    """How text is cut into blocks, beside their length and number.

    Attributes:
        sampling: Where blocks are taken, see `make_blocks`.
        sameness_tokens: Tokens of all evaluation blocks, where more than the core has; rounded up
            to complete blocks.
        factors: Lengths of the longer passages, in blocks.
        seed: Decides documents and places.
        bos: The BOS token that will stand before every block; it makes the first token count.
    """

    sampling: Literal["documents", "stream"] = "documents"
    sameness_tokens: int | None = None
    factors: Sequence[int] = ()
    seed: int = 0
    bos: int | None = None


@dataclass(frozen=True)
class _Wanted:
    """How many blocks of how many tokens."""

    block: int
    calibration: int
    core: int
    evaluation: int
    factors: Sequence[int]

    def longer(self, n_evaluation: int) -> dict[int, int]:
        """Factor -> passages with about as many tokens as the core of `n_evaluation` blocks."""
        counts = {factor: min(self.core, n_evaluation) // factor for factor in self.factors}
        return {factor: count for factor, count in counts.items() if count}


@dataclass(frozen=True)
class _Cuts:
    """What was cut; `lead_in` stands before blocks at the very start of their text."""

    calibration: list[Cut]
    evaluation: list[Cut]
    longer: dict[int, list[Cut]]
    lead_in: Tensor


def make_blocks(
    name: str,
    table: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    block: int,
    calibration_tokens: int,
    evaluation_tokens: int,
    cutting: Cutting | None = None,
) -> Blocks:
    """Cut the calibration and evaluation text of a corpus into blocks of `block` tokens.

    `documents`: blocks are taken from as many documents of a split as it has, in an order and at
    places that `seed` decides (`Sampler.from_documents`). An evaluation block has as many tokens of
    its own document before it, its lead-in; documents shorter than the two are joined.

    `stream`: the documents of a split are joined, tokenized as one stream and cut into consecutive
    blocks, as in published results; an incomplete last block is dropped. The lead-in of a block is
    the block before. Where one source was split, the first block of the evaluation stream is the
    first lead-in. Where evaluation has a separate source, its blocks start at the first token; the
    first lead-in is then the block after the calibration blocks or, if there is no more calibration
    text, the last calibration block.

    Args:
        name: the corpus, for messages.
        table: as `prepare_corpus` returns it; without a `source` column: one source, split.
        tokenizer: a fast tokenizer.
        block: tokens per block, T.
        calibration_tokens: rounded up to complete blocks.
        evaluation_tokens: of the core blocks; rounded up to complete blocks.
        cutting: where and what else; the defaults of `Cutting` if left out.

    Raises:
        TextError: a split is too short for one block, or the tokenizer is not a fast one.

    Warns:
        UserWarning: a split has fewer blocks than requested; all of them are used.
    """
    cutting = cutting or Cutting()
    n_core = -(-evaluation_tokens // block)
    n_evaluation = max(n_core, -(-(cutting.sameness_tokens or 0) // block))
    wanted = _Wanted(block, -(-calibration_tokens // block), n_core, n_evaluation, cutting.factors)
    sampler = Sampler(f"corpora.{name}", tokenizer, cutting.seed)
    cut = _cut_documents if cutting.sampling == "documents" else _cut_stream
    cuts = cut(sampler, table, wanted)
    for split in ("calibration", "evaluation"):
        n_blocks, n_wanted = len(getattr(cuts, split)), getattr(wanted, split)
        if n_blocks < n_wanted:
            documents = cutting.sampling == "documents"
            hint = f"; corpora.{name}.sampling: stream gives more of them" if documents else ""
            warnings.warn(
                f"corpora.{name}: {split} has {n_blocks} blocks of {block} tokens, {n_wanted} were"
                f" requested; using {n_blocks}{hint}",
                stacklevel=2,
            )
    return _blocks(cuts, min(n_core, len(cuts.evaluation)), cutting.bos)


def _cut_documents(sampler: Sampler, table: pd.DataFrame, wanted: _Wanted) -> _Cuts:
    block = wanted.block

    def first(split: str, length: int, count: int, lead: int) -> list[Cut]:
        return [*islice(sampler.from_documents(_rows(table, split), length, lead), count)]

    calibration = first("calibration", block, wanted.calibration, 0)
    _check(sampler, table, "calibration", calibration, block)
    evaluation = first("evaluation", block, wanted.evaluation, block)
    _check(sampler, table, "evaluation", evaluation, 2 * block)
    longer = {
        factor: first("evaluation", factor * block, count, block)
        for factor, count in wanted.longer(len(evaluation)).items()
    }
    return _Cuts(calibration, evaluation, longer, lead_in=calibration[-1].ids)


def _cut_stream(sampler: Sampler, table: pd.DataFrame, wanted: _Wanted) -> _Cuts:
    block = wanted.block
    separate = "source" in table and (table["source"] == "evaluation").any()
    skipped = 0 if separate else block

    def first(length: int, count: int) -> list[Cut]:
        return sampler.from_stream(_rows(table, "evaluation"), length, count, skipped)

    calibration = sampler.from_stream(_rows(table, "calibration"), block, wanted.calibration + 1, 0)
    _check(sampler, table, "calibration", calibration, block)
    evaluation = first(block, wanted.evaluation)
    _check(sampler, table, "evaluation", evaluation, skipped + block)
    longer = {
        factor: first(factor * block, count)
        for factor, count in wanted.longer(len(evaluation)).items()
    }
    lead_in = calibration[-1].ids
    return _Cuts(calibration[: wanted.calibration], evaluation, longer, lead_in)


def _rows(table: pd.DataFrame, split: str) -> pd.DataFrame:
    return table[table["split"] == split]


def _check(
    sampler: Sampler, table: pd.DataFrame, split: str, cuts: Sequence[Cut], needed: int
) -> None:
    """Refuse text that gave no block."""
    if not cuts:
        tokens = sampler.read(join_documents(_rows(table, split)["text"]), needed)
        raise TextError(
            f"{sampler.label}: the {split} text has {len(tokens.ids)} tokens, {needed} are needed;"
            " give more text, or a smaller block"
        )


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
        TextError: the text is too short for one block, no block is asked for, or the tokenizer is
            not a fast one.

    Example:
        >>> from keepset import cut_blocks, load
        >>> _, tokenizer = load("specimens/relu", dtype="float32")
        >>> blocks = cut_blocks(["The river is long. " * 40], tokenizer, block=32)
        >>> blocks.shape[1], tokenizer.decode(blocks[0, :4])
        (32, 'The river is')
    """
    if isinstance(documents, str) or block < 1:
        raise TextError(f"{label}: give a list of texts, and a block of one token or more")
    text = join_documents(documents)
    # A token has at least one byte, so there are at most this many.
    ids = Sampler(label, tokenizer).read(text, len(text.encode())).ids
    if len(ids) < block:
        raise TextError(
            f"{label}: the text has {len(ids)} tokens, {block} are needed; give more text, or a"
            " smaller block"
        )
    return ids[: len(ids) // block * block].view(-1, block)


def save_blocks(blocks: Blocks, path: str | Path) -> None:
    """Write blocks as safetensors, atomically; what is no tensor goes into the metadata."""
    tensors = {name: value.contiguous().clone() for name, value in _tensors(blocks).items()}
    facts = {"n_core": blocks.n_core, "bos": blocks.bos, "fingerprint": blocks.fingerprint}
    with replacing(path) as temporary:
        # One key alone: safetensors writes several in another order every time.
        save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})


def load_blocks(path: str | Path) -> Blocks:
    """Read blocks.

    Raises:
        TextError: the file is missing, corrupt, or does not match its fingerprint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads((file.metadata() or {})["facts"])
        expected = facts["fingerprint"]
        blocks = _from_tensors(tensors, facts["n_core"], facts["bos"])
    except FileNotFoundError:
        raise TextError(f"{path}: no such file of blocks; make it first") from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TextError(f"{path}: not a file of blocks ({error}); delete and remake it") from None
    if blocks.fingerprint != expected:
        raise TextError(f"{path}: the blocks do not match their fingerprint; delete and remake it")
    return blocks


_PASSAGES = tuple(field.name for field in fields(Passages) if field.name != "n_core")
_CALIBRATION = ("calibration", "calibration_document")


def _blocks(cuts: _Cuts, n_core: int, bos: int | None) -> Blocks:
    calibration = cuts.calibration
    tensors = {
        "calibration": torch.stack([cut.ids for cut in calibration]),
        "calibration_document": _numbers(calibration),
        **_passages(cuts.evaluation, cuts.lead_in, bos),
    }
    for factor, longer in cuts.longer.items():
        parts = _passages(longer, cuts.lead_in, bos) if longer else {}
        tensors |= {f"longer.{factor}.{name}": tensor for name, tensor in parts.items()}
    return _from_tensors(tensors, n_core, bos)


def _passages(cuts: Sequence[Cut], lead_in: Tensor, bos: int | None) -> dict[str, Tensor]:
    # The first token is predicted from a BOS token, and not at all without.
    texts = [cut.text_after(0 if bos is not None else 1) for cut in cuts]
    ids, before = torch.stack([cut.ids for cut in cuts]), [cut.before(len(lead_in)) for cut in cuts]
    return {
        "evaluation": ids,
        "document": _numbers(cuts),
        "lead_in": torch.stack([tokens if len(tokens) else lead_in for tokens in before]),
        "n_tokens": torch.full((len(ids),), ids.shape[1] - (bos is None)),
        "n_words": torch.tensor([len(text.split()) for text in texts]),
        "n_bytes": torch.tensor([len(text.encode()) for text in texts]),
    }


def _numbers(cuts: Sequence[Cut]) -> Tensor:
    """The documents, numbered from 0 as they appear."""
    return torch.from_numpy(pd.factorize(np.array([cut.document for cut in cuts]))[0])


def _from_tensors(tensors: Mapping[str, Tensor], n_core: int, bos: int | None) -> Blocks:
    """Blocks of tensors as a file holds them: those of longer passages are longer.FACTOR.NAME."""
    factors = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("longer.")})
    longer = {}
    for factor in factors:
        parts = {name: tensors[f"longer.{factor}.{name}"] for name in _PASSAGES}
        longer[factor] = Passages(**parts, n_core=len(parts["evaluation"]))
    return Blocks(
        **{name: tensors[name] for name in (*_PASSAGES, *_CALIBRATION)},
        n_core=n_core,
        bos=bos,
        longer=longer,
        fingerprint=_fingerprint(tensors, n_core, bos),
    )


def _tensors(blocks: Blocks) -> dict[str, Tensor]:
    tensors = {name: getattr(blocks, name) for name in (*_PASSAGES, *_CALIBRATION)}
    for factor, longer in blocks.longer.items():
        tensors |= {f"longer.{factor}.{name}": getattr(longer, name) for name in _PASSAGES}
    return tensors


def _fingerprint(tensors: Mapping[str, Tensor], n_core: int, bos: int | None) -> str:
    parts: list[bytes | str] = [json.dumps([n_core, bos])]
    for name in sorted(tensors):
        values = tensors[name].contiguous().numpy().astype("<i8")
        parts += [name, str(values.shape), values.tobytes()]
    return fingerprint(*parts)
