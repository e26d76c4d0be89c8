"""The model class of the harness: its numbers, its padding, its BOS, what it generates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from keepset import load, models
from keepset.calibrate import activations
from keepset.errors import ConfigError, ModelError
from keepset.harness.model import HeldLM, KeepsetLM
from keepset.kinds import find_sites
from keepset.measure.runner import Runner
from keepset.models.anywhere import source_of
from keepset.models.identity import weights_digest
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.settings.recipes import write_recipe

Make = Callable[..., PreTrainedModel]
PAIRS = [("The river", " is long and wide"), ("a", "b"), ("", "One ship"), ("In the year ", "of")]
RULES = [
    None,
    Rule("magnitude", 0.9, 1),
    Rule("magnitude", 0.5, 3),
    Rule("magnitude", 0.5, 3, "causal"),
    Rule("magnitude", 0.5, "sequence"),
    Rule("magnitude", 0.5, 1, site="input"),
]


def requests(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, one, 0, ("t", n, 1)) for n, one in enumerate(arguments)]


def made(model: PreTrainedModel, tokenizer: Any, rule: Rule | None, **options: Any) -> HeldLM:
    return HeldLM(Runner(model, find_sites(model), **options), tokenizer, rule)


def naive(lm: HeldLM, tokenizer: Any, context: str, target: str) -> float:
    """One passage, without padding, under the rule: the sum of log-probabilities of its target."""
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    stripped = context.rstrip()
    before = encode(stripped) or [tokenizer.bos_token_id]
    behind = encode(context[len(stripped) :] + target)
    bos = lm.runner.bos
    if bos is not None and before[0] != bos:
        before = [bos, *before]
    ids = torch.tensor([[*before, *behind]])
    with lm.runner.holding(lm.rule), torch.inference_mode():
        logits = lm.runner.model(input_ids=ids[:, :-1], use_cache=False).logits[0].double()
    scores = logits.log_softmax(-1)[len(before) - 1 :]
    return float(scores.gather(1, torch.tensor(behind)[:, None]).sum())


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("rule", RULES)
def test_log_probabilities_are_those_of_lone_passages(
    tiny_model: Make, tiny_tokenizer: PreTrainedTokenizerFast, rule: Rule | None, bos: int | None
) -> None:
    lm = made(tiny_model("llama"), tiny_tokenizer, rule, bos=bos)
    answers = lm.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    expected = [naive(lm, tiny_tokenizer, *pair) for pair in PAIRS]
    assert [logprob for logprob, _ in answers] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("family", "site"), [("mamba2", "state"), ("qwen3_moe", "expert")])
def test_states_and_experts(
    tiny_model: Make, tiny_tokenizer: PreTrainedTokenizerFast, family: str, site: str
) -> None:
    access = "read" if site == "state" else "none"
    rule = Rule("magnitude", 0.5, 1, site=site, access=access)
    lm = made(tiny_model(family), tiny_tokenizer, rule)
    answers = lm.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    expected = [naive(lm, tiny_tokenizer, *pair) for pair in PAIRS]
    assert [logprob for logprob, _ in answers] == pytest.approx(expected, rel=1e-4)
    (text,) = lm.generate_until(requests("generate_until", ("The", {"max_gen_toks": 3})))
    assert isinstance(text, str)


def test_dense_is_what_the_harness_itself_computes(
    tiny_model: Make, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama", max_position_embeddings=32)
    lm, stock = made(model, tiny_tokenizer, None), HFLM(model, tokenizer=tiny_tokenizer)
    # The last is longer than the model reads.
    pairs = [*PAIRS, ("w" * 40, " end of it")]
    with pytest.warns(UserWarning, match="1 of 5 texts are longer than the 32 tokens"):
        answers = lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    expected = stock.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    assert [one[0] for one in answers] == pytest.approx([one[0] for one in expected], rel=1e-5)
    assert [one[1] for one in answers] == [one[1] for one in expected]
    texts = [("A text of more than thirty-two bytes, in windows.",), ("b",), ("",)]
    rolling = [
        one.loglikelihood_rolling(requests("loglikelihood_rolling", *texts)) for one in (lm, stock)
    ]
    assert rolling[0] == pytest.approx(rolling[1], rel=1e-5)
    prompts = [(text, {"until": ["q"], "max_gen_toks": 7}) for text in ("The river", "a", "x" * 30)]
    texts_made = [one.generate_until(requests("generate_until", *prompts)) for one in (lm, stock)]
    # Stock rows are padded on the left, which a Llama does not mind.
    assert texts_made[0] == texts_made[1]


def test_text_is_generated_under_the_rule(
    tiny_model: Make, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    for bos in (None, 1):
        lm = made(tiny_model("llama"), tiny_tokenizer, Rule("magnitude", 0.5, 1), bos=bos)
        prompts = ["The river", "a"]
        settings = {"until": [], "max_gen_toks": 5}
        texts = lm.generate_until(requests("generate_until", *((one, settings) for one in prompts)))
        for prompt, text in zip(prompts, texts, strict=True):
            ids = tiny_tokenizer(prompt, add_special_tokens=False)["input_ids"]
            start = len(ids)
            with lm.runner.holding(lm.rule), torch.inference_mode():
                for _ in range(5):
                    read = ids if bos is None else [bos, *ids]
                    logits = lm.runner.model(torch.tensor([read]), use_cache=False).logits
                    ids.append(int(logits[0, -1].argmax()))
                    if ids[-1] == tiny_tokenizer.eos_token_id:
                        break
            assert text == tiny_tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_a_stop_string_ends_the_text(
    tiny_model: Make, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = made(tiny_model("llama"), tiny_tokenizer, Rule("magnitude", 0.5, 1))
    ask = lambda until: lm.generate_until(  # noqa: E731
        requests("generate_until", ("The river", {"until": until, "max_gen_toks": 8}))
    )[0]
    whole = ask([])
    stop = whole[3]
    assert ask([stop]) == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    "asked",
    [{"do_sample": True}, {"temperature": 0.7}, {"num_beams": 3}, {"repetition_penalty": 1.3}],
)
def test_only_greedy_text_is_generated(
    tiny_model: Make, tiny_tokenizer: PreTrainedTokenizerFast, asked: dict[str, Any]
) -> None:
    lm = made(tiny_model("llama"), tiny_tokenizer, None)
    with pytest.raises(ConfigError, match="generated greedily"):
        lm.generate_until(requests("generate_until", ("a", {"max_gen_toks": 2, **asked})))


def test_the_callers_tokenizer_and_model_are_left_as_they_were(
    tiny_model: Make, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lm = made(model, tiny_tokenizer, Rule("magnitude", 0.5, 1))
    lm.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    assert lm.tokenizer is not tiny_tokenizer
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_text_that_the_tokenizer_does_not_know_is_counted(
    tiny_model: Make, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = made(tiny_model("llama"), tiny_tokenizer, None)
    pairs = [("a <unk>", " b"), ("a", " b")]
    with pytest.warns(UserWarning, match="1 of 2 texts are not known to the tokenizer in some"):
        lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)


class TestArguments:
    def test_a_model_and_a_rule_by_name(self, tiny_checkpoint: Path) -> None:
        lm = KeepsetLM.create_from_arg_string(
            f"pretrained={tiny_checkpoint},keep=windowed:4:0.5,dtype=float32,bos=true",
            {"batch_size": 1, "max_batch_size": None, "device": "cpu"},
        )
        assert lm.rule == Rule("magnitude", 0.5, 4, "causal")
        assert lm.runner.bos == 1
        assert lm.get_model_info()["keep"] == "windowed magnitude 0.5 W=4 causal"

    def test_static_sets_come_from_a_cache(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        path = str(tiny_checkpoint)
        info = models.prepare("model", source_of(path), tmp_path)
        model, _ = load(path, dtype="float32")
        blocks = torch.arange(64).view(4, 16)
        moments = activations.collect_moments(model, find_sites(model), blocks)
        owner = {"model": info["fingerprint"], "bos": None, "text": "t", "dtype": "torch.float32"}
        activations.save(moments, tmp_path / "a.safetensors", owner)
        lm = KeepsetLM(path, keep="static:0.5", activations=str(tmp_path / "a.safetensors"))
        (answer,) = lm.loglikelihood(requests("loglikelihood", PAIRS[0]), disable_tqdm=True)
        assert answer[0] == pytest.approx(naive(lm, lm.tokenizer, *PAIRS[0]), rel=1e-4)

    def test_a_recipe(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        path = str(tiny_checkpoint)
        model, _ = load(path, dtype="float32")
        rules = {"ffn.000": Rule("magnitude", 0.5, 1), "ffn.001": Rule("magnitude", 0.75, 1)}
        owner = {"name": "mine", "weights": weights_digest(model)}
        write_recipe(Recipe(rules, model=owner), tmp_path / "recipe.yaml")
        lm = KeepsetLM(path, recipe=str(tmp_path / "recipe.yaml"), dtype="float32")
        answers = lm.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
        expected = [naive(lm, lm.tokenizer, *pair) for pair in PAIRS]
        assert [logprob for logprob, _ in answers] == pytest.approx(expected, rel=1e-5)
        lm.rule = None
        dense = lm.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
        assert [logprob for logprob, _ in dense] != pytest.approx(expected, rel=1e-3)
        with pytest.raises(ConfigError, match="made with the BOS token None before texts"):
            KeepsetLM(path, recipe=str(tmp_path / "recipe.yaml"), bos=True)
        write_recipe(Recipe(rules, model={**owner, "weights": "0" * 64}), tmp_path / "recipe.yaml")
        with pytest.raises(ModelError, match="the recipe belongs to mine"):
            KeepsetLM(path, recipe=str(tmp_path / "recipe.yaml"))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"keep": "static:0.5", "site": "state"}, "state channels are chosen by a study alone"),
            ({"keep": "dynamic:0.5", "site": "x"}, "unknown kind of site 'x'; known: ffn"),
            ({"keep": "dynamic:0.5", "recipe": "r.yaml"}, "give recipe alone"),
            ({"recipe": "nowhere.yaml"}, r"nowhere.yaml: this recipe cannot be read"),
            ({"keep": "half"}, "keep rule 'half' is not understood"),
            ({"keep": "static:0.5"}, "needs the model's activation cache"),
            ({"keep": "dynamic:0.5", "peft": "x"}, "model_args: unknown peft; known: pretrained"),
            ({"bos": "maybe"}, "bos='maybe'; write auto, true or false"),
        ],
    )
    def test_what_is_not_understood(
        self, tiny_checkpoint: Path, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            KeepsetLM(str(tiny_checkpoint), **options)

    def test_a_model_without_such_sites(self, tiny_checkpoint: Path) -> None:
        with pytest.raises(ModelError, match=r"state read .*: the model has no state channels"):
            KeepsetLM(str(tiny_checkpoint), keep="dynamic:0.5", site="state", access="read")

    def test_a_tokenizer_without_an_end(
        self, tiny_model: Make, tiny_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        import copy

        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.eos_token = None
        with pytest.raises(ModelError, match="has no eos_token; name one"):
            made(tiny_model("llama"), tokenizer, None)
