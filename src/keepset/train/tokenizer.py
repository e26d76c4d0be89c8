"""The tokenizer that all specimens share: byte-level BPE, as for GPT-2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from keepset.errors import TextError
from keepset.text.recall import draw_episode

END = "<|endoftext|>"
"""The one special token: end of text, beginning of text and padding; id 0."""

_EPISODES = 8_000  # so that every name and thing of the recall task becomes one token
_FACTS = 8


def train_tokenizer(texts: Iterable[str], vocabulary: int, seed: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE tokenizer on `texts` and on recall episodes.

    Args:
        texts: Documents.
        vocabulary: Entries, including the 256 bytes and the special token.
        seed: Decides the episodes.

    Raises:
        TextError: the text is too short for this vocabulary.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_with_episodes(texts, seed), trainer)
    if bpe.get_vocab_size() != vocabulary:
        raise TextError(
            f"training.vocabulary: the text gives only {bpe.get_vocab_size()} entries,"
            f" {vocabulary} were requested; give more text or request fewer"
        )
    return wrap_tokenizer(bpe)


def wrap_tokenizer(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer for transformers; `END` ends, begins and pads a text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END, unk_token=END
    )


def _with_episodes(texts: Iterable[str], seed: int) -> Iterator[str]:
    yield from texts
    generator = np.random.default_rng(seed)
    for _ in range(_EPISODES):
        pieces = draw_episode(generator, _FACTS, 0, ()).pieces()
        yield "".join(text for text, _ in pieces)
