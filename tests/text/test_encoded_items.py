"""Passages as tokens: the split of context and target, and what no tokenizer can say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from keepset.errors import ModelError, TextError
from keepset.measure.runner import Runner
from keepset.settings import Task
from keepset.text.tasks import Encoded, Item, encode_items, load_items

_words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


class TestEncode:
    @settings(deadline=None)
    @given(st.lists(_words, min_size=1, max_size=12), _words)
    def test_the_targets_tokens_decode_to_the_target(
        self, bpe: PreTrainedTokenizerFast, context: list[str], target: str
    ) -> None:
        (encoded,) = encode_items([Item(0, "a", " ".join(context), f" {target}")], bpe)
        ids, start = encoded.ids, encoded.target_start
        assert bpe.decode(ids[start:]).strip() == target
        assert bpe.decode(ids) == f"{' '.join(context)} {target}"
        assert start >= 1
        assert bpe.bos_token_id not in ids

    def test_the_split_is_that_of_the_harness(self, bpe: PreTrainedTokenizerFast) -> None:
        """lm-evaluation-harness: encode both, cut what the context takes."""
        item = Item(0, "a", "The captain walked under the", " bridge")
        (encoded,) = encode_items([item], bpe)
        passage = bpe("The captain walked under the bridge", add_special_tokens=False)["input_ids"]
        context = bpe(item.context, add_special_tokens=False)["input_ids"]
        assert encoded.ids == passage
        assert encoded.target_start == len(context)

    def test_a_merge_across_the_space_is_undone(self) -> None:
        vocabulary = {piece: number for number, piece in enumerate(["a", "b", " ", " b", "a b"])}
        tokenizer = Tokenizer(models.BPE(vocabulary, [(" ", "b"), ("a", " b")]))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("never", "isolated")
        merging = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        assert merging("a b")["input_ids"] == [4]
        (encoded,) = encode_items([Item(0, "a", "a", " b")], merging)
        assert (encoded.ids, encoded.target_start) == ([0, 3], 1)

    def test_a_space_at_the_end_of_the_context_is_the_targets(
        self, bpe: PreTrainedTokenizerFast
    ) -> None:
        items = [
            Item(0, "a", "walked under the ", "bridge"),
            Item(1, "a", "walked under the", " bridge"),
        ]
        first, second = encode_items(items, bpe)
        assert (first.ids, first.target_start) == (second.ids, second.target_start)


@pytest.fixture(scope="module")
def scoring_model() -> PreTrainedModel:
    """The model that the values below were computed with, in float64 and without keepset."""
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, vocab_size=260, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


RIGHT = [
    (("jsonl", "def f():\n", "    return 1"), -68.8112),
    (("jsonl", "日本の首都は", "東京"), -33.0225),
    (("jsonl", "The end", "."), -5.2831),
    (("lambada", "Then came the first\nmorning", ""), -47.3027),
]
"""Passages, and the log-probability of their target by plain transformers, in nats."""


@pytest.mark.parametrize(("passage", "logprob"), RIGHT)
def test_passages_are_scored_as_they_are_written(
    tmp_path: Path,
    scoring_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    passage: tuple[str, str, str],
    logprob: float,
) -> None:
    kind, context, target = passage
    row = {"context": context, "target": target} if kind == "jsonl" else {"text": context}
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(row))
    task = Task.model_validate({"kind": kind, "source": {"path": str(path)}})
    encoded = encode_items(load_items("last", task), tiny_tokenizer)
    answers = Runner(scoring_model, []).last_words(encoded)
    assert answers["logprob"][0] == pytest.approx(logprob, abs=1e-3)


def test_a_target_may_follow_the_bos_alone(
    scoring_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    encoded = encode_items([Item(0, "a", "", "The")], tiny_tokenizer, bos=1)
    answers = Runner(scoring_model, [], bos=1).last_words(encoded)
    with torch.no_grad():
        logits = scoring_model(input_ids=torch.tensor([[1, *encoded[0].ids]])).logits[0, :-1]
    expected = logits.double().log_softmax(-1).gather(1, torch.tensor(encoded[0].ids)[:, None])
    assert answers["logprob"][0] == pytest.approx(float(expected.sum()), abs=1e-4)
    with pytest.raises(ModelError, match="item 0 has no context, and the model no BOS"):
        Runner(scoring_model, []).last_words(encoded)


LETTERS = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {
    letter: number for number, letter in enumerate("ACDEFGHIKLMNPQRSTVWY", start=3)
}


@pytest.fixture(params=[None, "<eos>"], ids=["drops", "unknown"])
def letters_only(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer of the twenty amino acids; other letters it drops, or makes unknown tokens."""
    tokenizer = Tokenizer(models.BPE(vocab=LETTERS, merges=[], unk_token=request.param))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=request.param)


class TestUnknown:
    @pytest.mark.parametrize(
        ("context", "target", "message"),
        [
            ("M K V", "x", r"item 7 \('M K V' -> 'x'\): .*target"),
            ("x", "L", r"item 7 .*context"),
            ("M x V", " L", "unknown to the tokenizer"),
            ("M K V", " Lx", "of its target is unknown to the tokenizer"),
        ],
    )
    def test_items_that_the_tokenizer_does_not_know_are_refused(
        self, letters_only: PreTrainedTokenizerFast, context: str, target: str, message: str
    ) -> None:
        with pytest.raises(TextError, match=message):
            encode_items([Item(7, "a", context, target)], letters_only)

    def test_a_bos_may_be_the_whole_context(self, letters_only: PreTrainedTokenizerFast) -> None:
        (encoded,) = encode_items([Item(0, "a", "", "L")], letters_only, bos=1)
        assert (encoded.ids, encoded.target_start) == ([LETTERS["L"]], 0)
        with pytest.raises(TextError, match=r"its context gives no token"):
            encode_items([Item(0, "a", "", "L")], letters_only)

    def test_no_passage_is_without_a_target(self) -> None:
        for start in (-1, 2):
            with pytest.raises(TextError, match="at least one token of the target"):
                Encoded([4, 5], start)


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("jsonl", "shorten or remove it in the task's source"),
        ("lambada", "shorten or remove it in the task's source"),
        ("built", "max_words"),
        ("recall", "facts or distances"),
    ],
)
def test_too_long_an_item_is_named_with_what_helps(
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
    kind: str,
    remedy: str,
) -> None:
    items = [Item(0, "a", "short", " end", kind=kind), Item(1, "a", "long" * 20, " end", kind=kind)]
    runner = Runner(tiny_model("opt", max_position_embeddings=32), [])
    # The last of the 84 tokens is only predicted.
    with pytest.raises(ModelError, match=rf"item 1\b.* 83 tokens .*{remedy}"):
        runner.last_words(encode_items(items, tiny_tokenizer))
