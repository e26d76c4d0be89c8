"""A small tokenizer that merges as a real one does."""

from __future__ import annotations

import pytest
from made_prose import make_prose
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges, as GPT-2's: any text, and offsets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([make_prose(seed, 5) for seed in range(20)], trainer)
    # A real tokenizer often adds a token at the front; blocks and items must be without it.
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
