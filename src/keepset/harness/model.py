"""A model class of EleutherAI's evaluation harness that runs under a keep rule."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor

from keepset import models
from keepset.calibrate.sets import RankedSets
from keepset.decode.generate import parse_keep, read_moments
from keepset.errors import ConfigError, ModelError
from keepset.hold.contexts import with_bos
from keepset.kinds import find_sites
from keepset.measure.runner import Runner
from keepset.models.anywhere import source_of
from keepset.models.identity import still_to_do
from keepset.models.limits import positions_of
from keepset.rules.kinds import CACHE, KINDS
from keepset.rules.masks import KeepSets
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule, describe
from keepset.run.progress import Progress
from keepset.settings.recipes import read_recipe
from keepset.text import Encoded

_ALL_AT_ONCE = 2**31
"""Requests per call: the runner makes its own batches."""
_SAMPLING = {"do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p"}
"""What greedy generation does not read."""
_RULE_ARGUMENTS = ("score", "site", "access", "activations", "recipe")
_Request = tuple[Any, list[int], list[int]]


class HeldLM(HFLM):
    """A runner's model under a rule, for the harness.

    Text is encoded as the harness does it, and every forward pass is the runner's: padding stands
    on the right and no rule sees it, and the BOS token stands where the runner puts it. It is put
    before every window of a long text too. Text is generated greedily, a row at a time.

    Attributes:
        rule: What the model runs under; None is dense. It may be changed between calls.
        progress: Told of every batch, where it is set.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Any,
        rule: Rule | Recipe | None = None,
        max_length: int | None = None,
    ) -> None:
        """Wrap a runner.

        Args:
            runner: The model, its sites and its static keep sets.
            tokenizer: The model's tokenizer; a copy is used.
            rule: A keep rule, or a recipe.
            max_length: Tokens that the model reads at most; its positions, or 2,048, if left out.

        Raises:
            ModelError: the tokenizer has neither a BOS nor an EOS token.
        """
        self.runner, self.rule = runner, rule
        self.progress: Progress | None = None
        self._bos = [] if runner.bos is None else [runner.bos]
        length = max_length or positions_of(runner.model.config) or HFLM._DEFAULT_MAX_LENGTH
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the harness needs the token that ends a text, and the tokenizer has no eos_token;"
                " name one in tokenizer_config.json"
            )
        super().__init__(
            pretrained=runner.model,
            backend="causal",
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=_ALL_AT_ONCE,
            max_length=length - len(self._bos),
            add_bos_token=False,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the harness records of a model, and the rule."""
        return {**super().get_model_info(), "keep": describe(self.rule)}

    def _loglikelihood_tokens(
        self,
        requests: Sequence[_Request],
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each target, and whether it is the greedy continuation."""
        if not requests:
            return []
        texts = [self._without_bos(context) + target for _, context, target in requests]
        self._warn_of(texts)
        items = [
            self._encoded(number, ids, len(target))
            for number, (ids, (_, _, target)) in enumerate(zip(texts, requests, strict=True))
        ]
        table = self.runner.last_words(items, self.rule, self.progress)
        pairs = zip(table["logprob"], table["correct"], strict=True)
        return [(float(logprob), bool(greedy)) for logprob, greedy in pairs]

    def _warn_of(self, texts: Sequence[list[int]]) -> None:
        """Count the texts that are not read as they are."""
        most = self.max_length
        unknown = {self.tokenizer.unk_token_id} - {None, self.prefix_token_id}
        cut = sum(len(ids) > most + 1 for ids in texts)
        lost = sum(not unknown.isdisjoint(ids) for ids in texts)
        for some, what in (
            (cut, f"longer than the {most} tokens that the model reads: their ends are taken"),
            (lost, "not known to the tokenizer in some part"),
        ):
            if some:
                warnings.warn(f"{some} of {len(texts)} texts are {what}", stacklevel=4)

    def _encoded(self, number: int, ids: list[int], n_target: int) -> Encoded:
        if n_target > self.max_length:
            raise ModelError(
                f"request {number}: its target has {n_target} tokens, and the model reads"
                f" {self.max_length}; leave it out"
            )
        # The last token is only predicted, never read.
        read = ids[-(self.max_length + 1) :]
        return Encoded(read, len(read) - n_target, number)

    def _without_bos(self, ids: list[int]) -> list[int]:
        """Text without the BOS token that the runner puts before it."""
        return ids[1:] if self._bos and ids[:1] == self._bos else ids

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **options: Any
    ) -> Tensor:
        """Continue rows (batch, n) with padding on the left: (batch, at most `max_length`)."""
        valid, new = options.pop("attention_mask").bool(), max_length - context.shape[1]
        asked = {key: value for key, value in options.items() if key not in _SAMPLING}
        if options.get("do_sample") or any(value not in (None, 1) for value in asked.values()):
            raise ConfigError(
                f"text is generated greedily, and the task asks for {options}; change its"
                " generation_kwargs: do_sample: false, and nothing else that changes what is chosen"
            )
        pad = self.tokenizer.pad_token_id
        rows = torch.full((len(context), max_length), pad, dtype=torch.long)
        rows[:, : context.shape[1]] = context
        for row, ids, mask in zip(rows, context, valid, strict=True):
            text = self._without_bos(ids[mask].tolist())
            made = self._continued(text, new, stop)
            row[context.shape[1] :][: len(made)] = made
        return rows

    def _continued(self, text: list[int], new: int, stop: list[str]) -> Tensor:
        """At most `new` tokens after a text, greedily, until one of the strings in `stop`."""
        ids = with_bos(torch.tensor([text], dtype=torch.long), self.runner.bos).to(self.device)
        criteria = stop_sequences_criteria(self.tokenizer, stop, ids.shape[1], 1)
        # Rules hold on whole passages, so under them each token reads its whole past.
        with self.runner.holding(self.rule), torch.inference_mode():
            made = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                use_cache=self.rule is None,
                stopping_criteria=criteria,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        if self.progress is not None:
            self.progress.advance(made.shape[1], describe(self.rule))
        return made[0, ids.shape[1] :].cpu()


class KeepsetLM(HeldLM):
    """The model `keepset` of the harness: `--model_args pretrained=FOLDER,keep=dynamic:0.5`."""

    def __init__(
        self,
        pretrained: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int = 1024,
        max_length: int | None = None,
        **options: Any,
    ) -> None:
        """Load a model, and hold a rule on it.

        Args:
            pretrained: A folder, a .gguf file, PACKAGE:FILE, or a hub id.
            device: auto, cpu, cuda or cuda:N.
            dtype: auto, float32, bfloat16 or float16.
            batch_tokens: Tokens per forward pass, at least one text. The harness's `--batch_size`
                is not read.
            max_length: See `HeldLM`.
            options: tokenizer and bos, as in the configuration; and those of `held_rule`.

        Raises:
            ConfigError: a rule or recipe that is not understood, or an unknown argument.
            ModelError: the model cannot be loaded or has no site for the rule, or the recipe is of
                another.
        """
        where: dict[str, Any] = {"tokenizer": options.pop("tokenizer", None)}
        where["bos"] = _bos(options.pop("bos", "auto"))
        for ignored in ("batch_size", "max_batch_size"):  # the harness gives them always
            options.pop(ignored, None)
        place = models.resolve_device(device)
        with tempfile.TemporaryDirectory() as folder:
            info = models.prepare("model", source_of(pretrained, **where), folder)
            model, tokenizer = models.load(info, place, models.resolve_dtype(dtype, place))
        rule, keep_sets = held_rule(model, info, **options)
        runner = Runner(
            model,
            find_sites(model),
            keep_sets=keep_sets,
            batch_tokens=batch_tokens,
            bos=info["bos"],
        )
        with runner.holding(rule):  # what cannot be held is refused before any text is read
            pass
        super().__init__(runner, tokenizer, rule, max_length)


def held_rule(
    model: Any, info: Mapping[str, Any], keep: str = "dense", **options: Any
) -> tuple[Rule | Recipe | None, KeepSets | None]:
    """The rule or recipe that arguments of the model class say, and its static keep sets.

    Args:
        model: The loaded model.
        info: What `keepset.models.prepare` says of it.
        keep: dense, or a rule as in `keepset generate --keep`.
        options: score; site and access, of other sites than neurons; activations: the model's
            activation cache, for a static rule. Or recipe, a recipe.yaml, in the place of all.

    Raises:
        ConfigError: a rule or recipe that is not understood, or an unknown argument.
        ModelError: the recipe is of another model.
        CacheError: the activation cache is of another model.
    """
    if unknown := options.keys() - _RULE_ARGUMENTS:
        raise ConfigError(
            f"model_args: unknown {', '.join(sorted(unknown))}; known: pretrained, keep,"
            f" {', '.join(_RULE_ARGUMENTS)}, tokenizer, bos, dtype, device, batch_tokens,"
            " max_length"
        )
    if "recipe" in options:
        if keep != "dense" or len(options) > 1:
            raise ConfigError("model_args: a recipe says all of what is kept: give recipe alone")
        recipe = still_to_do(model, read_recipe(options["recipe"]))
        if recipe.bos != info["bos"]:
            raise ConfigError(
                f"model_args: the recipe was made with the BOS token {recipe.bos} before texts, and"
                f" here it is {info['bos']}; set bos as it was then"
            )
        return recipe, None
    if keep == "dense":
        return None, None
    place = {name: options[name] for name in ("site", "access") if name in options}
    score, activations = options.get("score", "magnitude"), options.get("activations")
    rule = dataclasses.replace(parse_keep(keep, score), **place)
    if rule.window != "corpus":
        return rule, None
    kind = KINDS[rule.site]
    if kind.sets != CACHE:
        raise ConfigError(
            f"model_args: keep={keep}: {kind.units} are chosen by a study alone: run the task there"
        )
    if activations is None:
        raise ConfigError(
            f"model_args: keep={keep} needs the model's activation cache:"
            " activations=results/STUDY/MODEL/CORPUS/activations.safetensors"
        )
    moments = read_moments(Path(activations), info["fingerprint"], info["bos"])
    return rule, RankedSets(moments, rule.site)


def _bos(value: str | bool) -> Literal["auto"] | bool:
    if value == "auto" or isinstance(value, bool):
        return "auto" if value == "auto" else bool(value)
    raise ConfigError(f"model_args: bos={value!r}; write auto, true or false")
