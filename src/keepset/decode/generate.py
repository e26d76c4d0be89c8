"""Greedy generation, dense or under a keep rule, and the proof that its tokens are the rule's."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from keepset.calibrate import activations
from keepset.decode import Session, sparse_decoding
from keepset.decode.reference import (
    Disagreement as Disagreement,
    disagreement as disagreement,
    is_of_neurons,
)
from keepset.errors import CacheError, ConfigError, ModelError
from keepset.files import archive
from keepset.hold.contexts import with_bos
from keepset.kernels import clock
from keepset.measure.finite import refuse_infinite
from keepset.models import check_ids, check_length
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule, describe
from keepset.sites.ffn import find_ffn_sites

_SHORTER = "--tokens, or shorten the prompt"
_FORMS = "dynamic:SPARSITY, windowed:TOKENS:SPARSITY or static:SPARSITY"


def parse_keep(text: str, score: str = "magnitude") -> Rule:
    """A keep rule from `dynamic:0.9`, `windowed:16:0.9` (causal) or `static:0.9`.

    Raises:
        ConfigError: another form, or a sparsity or window that a rule refuses.

    Example:
        >>> from keepset import describe, parse_keep
        >>> describe(parse_keep("windowed:16:0.9"))
        'windowed magnitude 0.9 W=16 causal'
    """
    name, *numbers = text.split(":")
    try:
        if name == "dynamic" and len(numbers) == 1:
            return Rule(score, float(numbers[0]), 1)
        if name == "windowed" and len(numbers) == 2:
            return Rule(score, float(numbers[1]), int(numbers[0]), "causal")
        if name == "static" and len(numbers) == 1:
            return Rule(score, float(numbers[0]), "corpus")
    except ValueError:
        pass
    raise ConfigError(f"keep rule {text!r} is not understood; write {_FORMS}")


def _named(bos: int | None) -> str:
    return "no token" if bos is None else f"token {bos}"


def read_moments(
    path: str | Path, fingerprint: str, bos: int | None = None
) -> dict[str, dict[str, Tensor]]:
    """The calibration sums of an activation cache, whatever its text, if it is this model's.

    Raises:
        CacheError: the file cannot be read, or belongs to another model, or to this one with
            another BOS before its texts.
    """
    owner = archive.owner_of(path, activations.FORMAT, "activation cache")
    if owner.get("model") != fingerprint:
        raise CacheError(
            f"{path}: the activation cache is of another model; use the one that was written for"
            " the checkpoint that is run"
        )
    if owner.get("bos") != bos:
        raise CacheError(
            f"{path}: the activation cache was made with {_named(owner.get('bos'))} before its"
            f" texts, and here it is {_named(bos)}; set --bos as it was then"
        )
    return activations.load(path, owner)


@dataclass(frozen=True)
class Generation:
    """What a greedy run gave.

    Attributes:
        tokens: The new tokens, (n,) int64.
        prefill_s: Seconds for the prompt and the first new token.
        steps_s: Seconds of each further token, (n - 1,), on `keepset.kernels.clock.seconds`.
        paths: Tokens x sites by path taken (`keepset.decode.Session`).
        mixers: What ran the model's Mamba-2 mixers (`keepset.decode.Session`).
    """

    tokens: Tensor
    prefill_s: float
    steps_s: Tensor
    paths: Counter[str]
    mixers: Mapping[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Tokens per second of decoding, without the prompt; 0 where none was decoded."""
        return len(self.steps_s) / float(self.steps_s.sum()) if len(self.steps_s) else 0.0


@dataclass(frozen=True)
class Replay:
    """A text (n,) that is read in the place of new tokens, and its sets (`sparse_decoding`)."""

    tokens: Tensor
    sets: Mapping[str, Tensor]


def generate(
    model: Any,
    ids: Tensor,
    tokens: int,
    rule: Rule | Recipe | None = None,
    *,
    stop: Collection[int] = (),
    bos: int | None = None,
    **options: Any,
) -> Generation:
    """Continue a prompt greedily with a key-value cache; of equal logits the lowest index wins.

    Args:
        model: A causal language model in eval mode.
        ids: The prompt, (1, n) int64, n >= 1, or 0 where a BOS token stands before it.
        tokens: New tokens, at most.
        rule: The keep rule or recipe, as in `sparse_decoding`; None is dense. The prompt is under
            it too, but for the first token of the context.
        stop: Tokens after which generation ends.
        bos: The token that is put before the prompt; None where the model has none.
        options: moments and kernels, as in `sparse_decoding`.

    Raises:
        ConfigError: an empty prompt or several, no tokens asked for, or a rule that cannot be
            decoded under.
        ModelError: prompt and new tokens exceed the model's positions, the prompt has tokens that
            the model does not know, or logits are not finite.

    Example:
        >>> from keepset import generate, load, parse_keep
        >>> model, tokenizer = load("specimens/relu", dtype="float32")
        >>> prompt = tokenizer("The river", return_tensors="pt").input_ids
        >>> generate(model, prompt, 4, parse_keep("dynamic:0.9"), kernels="torch").tokens.shape
        torch.Size([4])
    """
    with sparse_decoding(model, rule, bos=bos, **options) as session:
        (run,) = _take_turns([_Decoder(model, session, stop)], with_bos(ids, bos), tokens)
    return run


def compare(
    model: Any,
    ids: Tensor,
    tokens: int,
    rule: Rule | Recipe,
    *,
    replay: Replay | None = None,
    stop: Collection[int] = (),
    **options: Any,
) -> tuple[Generation, Generation]:
    """Generate dense and under a rule; the two take turns, token by token.

    So a machine that is busy now and then slows both. The kernels of mixers stand in for both.
    Under a recipe, which stores weights another way, the two have weights of their own, and take
    twice the memory. Errors as
    in `generate`.

    Args:
        model, ids, tokens, rule, stop: As in `generate`.
        replay: A text to read in the place of the new tokens.
        options: moments, kernels and bos, as in `generate`.

    Returns:
        Dense, sparse.

    Example:
        >>> from keepset import compare, load, parse_keep
        >>> model, tokenizer = load("specimens/relu-l1", dtype="float32")
        >>> prompt = tokenizer("The river", return_tensors="pt").input_ids
        >>> dense, sparse = compare(model, prompt, 4, parse_keep("dynamic:0.9"), kernels="torch")
        >>> dense.tokens.tolist() == sparse.tokens.tolist()  # nothing is lost in this model
        True
        >>> speedup = sparse.rate / dense.rate
    """
    other = twin(model) if is_of_neurons(rule) else copy.deepcopy(model)
    sets, text = (None, None) if replay is None else (replay.sets, replay.tokens)
    with sparse_decoding(other, rule, given=sets, **options) as session:
        plain = Session(None, session.selection, mixers=session.mixers)
        decoders = [_Decoder(model, plain, stop, text), _Decoder(other, session, stop, text)]
        context = with_bos(ids, options.get("bos"))
        dense, sparse = _take_turns(decoders, context, tokens)
    return dense, sparse


def twin(model: Any) -> Any:
    """A second model of modules of its own over the same parameters: it takes no memory.

    What stands in for weights of the one leaves the other alone.
    """
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _take_turns(decoders: Sequence[_Decoder], ids: Tensor, tokens: int) -> list[Generation]:
    """Decode with each, a token at a time; prompts run twice, the first time to warm up."""
    if ids.ndim != 2 or len(ids) != 1:
        raise ConfigError(f"one prompt is continued, of shape (1, n); got {tuple(ids.shape)}")
    if ids.shape[1] < 1 or tokens < 1:
        raise ConfigError("generation needs a prompt of one token or more, and --tokens >= 1")
    for decoder in decoders:
        check_length(decoder.model, ids.shape[1] + tokens, "prompt and new tokens", _SHORTER)
        check_ids(decoder.model, ids, "the prompt")
    with torch.inference_mode():
        for _ in range(2):
            for decoder in decoders:
                decoder.read_prompt(ids)
        for _ in range(tokens - 1):
            for decoder in decoders:
                decoder.advance()
    return [decoder.generation() for decoder in decoders]


class _Decoder:
    """Continues one prompt greedily, a token at a time."""

    def __init__(
        self, model: Any, session: Session, stop: Collection[int], text: Tensor | None = None
    ) -> None:
        """`text` (n,) is read in the place of the new tokens."""
        self.model = model
        self._session, self._stop, self._text = session, stop, text
        arguments = inspect.signature(model.forward).parameters
        # The head is a fifth of a small model's work, and the prompt needs its last row only.
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in arguments else {}
        # Models without attention keep their states under another name.
        names = ("past_key_values", "cache_params")
        self._cache_name = next(name for name in names if name in arguments)

    def read_prompt(self, ids: Tensor) -> None:
        """Predict the first new token, from an empty cache; what was decoded before is dropped."""
        self._session.paths.clear()
        self._read: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._seconds: list[float] = []
        self._cache: Any = None
        self._predict(ids)

    def advance(self) -> None:
        """Read the newest token and predict the next, unless the newest ends the text."""
        newest = self._tokens[-1]
        if int(newest) in self._stop:
            return
        place, text = len(self._tokens) - 1, self._text
        self._predict(newest if text is None else text[place].view(1, 1))

    def _predict(self, ids: Tensor) -> None:
        start = self._clock()
        cache = {self._cache_name: self._cache}
        self._read.append(ids)
        try:
            out = self.model(input_ids=ids, use_cache=True, **cache, **self._options)
        except ModelError:  # no set can be chosen on NaN
            self._refuse()
        logits = out.logits[:, -1:]
        token = logits.argmax(dim=-1)
        self._seconds.append(self._clock() - start)
        # A masked logit is minus infinity; NaN is the largest of its row.
        if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
            self._refuse()
        self._tokens.append(token)
        self._cache = out[self._cache_name]

    def _refuse(self) -> NoReturn:
        sites, context = find_ffn_sites(self.model), torch.cat(self._read, dim=1)
        label = describe(self._session.rule)
        refuse_infinite(self.model, sites, [context], "the logits are", label)

    def _clock(self) -> float:
        """Seconds, without those that went into timing paths."""
        return clock.seconds() - self._session.selection.timing_s

    def generation(self) -> Generation:
        """What was decoded so far."""
        seconds = torch.tensor(self._seconds, dtype=torch.float64)
        tokens = torch.cat(self._tokens, dim=1)[0].cpu()
        paths, mixers = self._session.paths, dict(self._session.mixers)
        return Generation(tokens, float(seconds[0]), seconds[1:], paths, mixers)


def stops(model: Any) -> set[int]:
    """The tokens that end a text, by the model's own generation settings."""
    settings = getattr(model, "generation_config", None)
    end = getattr(settings, "eos_token_id", None)
    return set() if end is None else set(end) if isinstance(end, list | tuple) else {int(end)}
