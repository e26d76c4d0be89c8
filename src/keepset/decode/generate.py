"""Greedy generation, dense or under a keep rule, and the proof that its tokens are the rule's."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keepset.calibrate import activations
from keepset.calibrate.sets import RankedSets
from keepset.decode import Session, sparse_decoding
from keepset.errors import CacheError, ConfigError
from keepset.files import archive
from keepset.kernels import calibrate
from keepset.measure.runner import Runner
from keepset.models import check_length
from keepset.rules.rule import Rule
from keepset.rules.scores import Moments
from keepset.sites import find_sites

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
_FORMS = "dynamic:SPARSITY, windowed:TOKENS:SPARSITY or static:SPARSITY"


def parse_keep(text: str, score: str = "magnitude") -> Rule:
    """A keep rule from `dynamic:0.9`, `windowed:16:0.9` (causal) or `static:0.9`.

    Raises:
        ConfigError: another form, or a sparsity or window that a rule refuses.
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


def load_moments(path: str | Path, fingerprint: str) -> dict[str, dict[str, Tensor]]:
    """The calibration sums of an activation cache, whatever its text, if it is this model's.

    Raises:
        CacheError: the file cannot be read, or belongs to another model.
    """
    identity = archive.identity_of(path, activations.FORMAT, "activation cache")
    if identity.get("model") != fingerprint:
        raise CacheError(
            f"{path}: the activation cache is of another model; use the one that was written for"
            " the checkpoint that is run"
        )
    return activations.load(path, identity)


@dataclass(frozen=True)
class Generation:
    """What a greedy run gave.

    Attributes:
        tokens: The new tokens, (n,) int64.
        prefill_s: Seconds for the prompt and the first new token.
        steps_s: Seconds of each further token, (n - 1,), on `keepset.kernels.calibrate.clock`.
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


def generate(
    model: Any,
    ids: Tensor,
    tokens: int,
    rule: Rule | None = None,
    *,
    moments: Mapping[str, Moments] | None = None,
    stop: Collection[int] = (),
) -> Generation:
    """Continue a prompt greedily with a key-value cache; of equal logits the lowest index wins.

    Args:
        model: A causal language model in eval mode.
        ids: The prompt, (1, n) int64, n >= 1.
        tokens: New tokens, at most.
        rule: The keep rule, as in `sparse_decoding`; None is dense. The prompt is under it too.
        moments: Calibration sums, for static rules.
        stop: Tokens after which generation ends.

    Raises:
        ConfigError: an empty prompt, no tokens asked for, or a rule that cannot be decoded under.
        ModelError: prompt and new tokens exceed the model's positions.
    """
    with sparse_decoding(model, rule, moments=moments) as session:
        (run,) = _in_turn([(model, session)], ids, tokens, stop)
    return run


def compare(
    model: Any,
    ids: Tensor,
    tokens: int,
    rule: Rule,
    *,
    moments: Mapping[str, Moments] | None = None,
    given: Mapping[str, Tensor] | None = None,
    follow: Tensor | None = None,
    stop: Collection[int] = (),
) -> tuple[Generation, Generation]:
    """Generate dense and under a rule; the two take turns, token by token.

    So a machine that is busy now and then slows both. The kernels of mixers stand in for both.
    Arguments and errors as in `generate`, and:

    Args:
        model, ids, tokens, rule, moments, stop: As in `generate`.
        given: Sets known beforehand, as in `sparse_decoding`.
        follow: (tokens,) int64, read in the place of the new tokens, which are then predictions
            for a text that is given.

    Returns:
        Dense, sparse.
    """
    other = twin(model)
    with sparse_decoding(other, rule, moments=moments, given=given) as session:
        runs = [(model, Session(None, mixers=session.mixers)), (other, session)]
        dense, sparse = _in_turn(runs, ids, tokens, stop, follow)
    return dense, sparse


def twin(model: Any) -> Any:
    """A second model of modules of its own over the same parameters: it takes no memory.

    What stands in for weights of the one leaves the other alone.
    """
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _in_turn(
    runs: Sequence[tuple[Any, Session]],
    ids: Tensor,
    tokens: int,
    stop: Collection[int],
    follow: Tensor | None = None,
) -> list[Generation]:
    if ids.shape[1] < 1 or tokens < 1:
        raise ConfigError("generation needs a prompt of one token or more, and --tokens >= 1")
    for model, _ in runs:
        check_length(model, ids.shape[1] + tokens, "prompt and new tokens", "--tokens")
    lines = [_Line(_stepper(model), session) for model, session in runs]
    with torch.inference_mode():
        for _warm_up in range(2):
            for line in lines:
                line.begin(ids)
        for at in range(tokens - 1):
            for line in lines:
                if int(line.found[-1]) not in stop:
                    line.advance(None if follow is None else follow[at].view(1, 1))
    return [line.result() for line in lines]


class _Line:
    """One generation that goes on a token at a time."""

    def __init__(self, step: Step, session: Session) -> None:
        self._step = step
        self._session = session
        self.found: list[Tensor] = []
        self._times: list[float] = []

    def begin(self, ids: Tensor) -> None:
        """Read the prompt, from an empty cache."""
        self._session.paths.clear()
        self._times, self.found = [], []
        self._take(ids, None)

    def advance(self, token: Tensor | None) -> None:
        """Decode one token; `token` (1, 1) is read in the place of the last."""
        self._take(self.found[-1] if token is None else token, self._cache)

    def _take(self, ids: Tensor, cache: Any) -> None:
        start = _clock()
        token, self._cache = self._step(ids, cache)
        self._times.append(_clock() - start)
        self.found.append(token)

    def result(self) -> Generation:
        times = torch.tensor(self._times, dtype=torch.float64)
        tokens = torch.cat(self.found, dim=1)[0].cpu()
        session = self._session
        return Generation(tokens, float(times[0]), times[1:], session.paths, dict(session.mixers))


def _stepper(model: Any) -> Step:
    """(ids (1, n), cache or None) -> the greedy next token (1, 1), the cache."""
    # The head is a fifth of a small model's work, and the prompt needs its last row only.
    known = inspect.signature(model.forward).parameters
    last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    # Models without attention keep their states under another name.
    held = "past_key_values" if "past_key_values" in known else "cache_params"

    def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        out = model(input_ids=ids, use_cache=True, **{held: cache}, **last)
        return out.logits[:, -1:].argmax(dim=-1), out[held]

    return step


def _clock() -> float:
    """Seconds, without those that went into choosing paths."""
    return calibrate.clock() - calibrate.spent()


def stops(model: Any) -> set[int]:
    """The tokens that end a text, by the model's own generation settings."""
    settings = getattr(model, "generation_config", None)
    end = getattr(settings, "eos_token_id", None)
    return set() if end is None else set(end) if isinstance(end, list | tuple) else {int(end)}


@dataclass(frozen=True)
class Disagreement:
    """The first new token that is not the masked reference's.

    Attributes:
        at: Its index among the new tokens.
        token: What was generated, and `expected`: the reference's choice.
        gap: How much more logit the reference gives to its own choice.
    """

    at: int
    token: int
    expected: int
    gap: float


def disagreement(
    model: Any,
    ids: Tensor,
    new: Tensor,
    rule: Rule | None,
    moments: Mapping[str, Moments] | None = None,
) -> Disagreement | None:
    """Compare new tokens with those of the masked reference, `keepset.hold.inputs`.

    One teacher-forced pass over prompt and new tokens, without a key-value cache, decides for all
    of them: keep sets and logits at a token depend on the tokens up to it alone, so as long as
    tokens agree both runs have the same past.

    Args:
        model: The model, outside any rule.
        ids: The prompt, (1, n).
        new: The new tokens, (m,).
        rule: The rule that they were generated under.
        moments: Calibration sums, for static rules.

    Returns:
        None if every token is the reference's greedy choice, else the first that is not.
    """
    logits = _reference_logits(model, ids, new, rule, moments)
    best = logits.argmax(dim=-1)
    wrong = (best != new).nonzero()[:, 0]
    if not len(wrong):
        return None
    at = int(wrong[0])
    token, expected = int(new[at]), int(best[at])
    return Disagreement(at, token, expected, float(logits[at, expected] - logits[at, token]))


def _reference_logits(
    model: Any,
    ids: Tensor,
    new: Tensor,
    rule: Rule | None,
    moments: Mapping[str, Moments] | None,
) -> Tensor:
    """The masked reference's logits before each of the new tokens: (m, vocabulary)."""
    whole = torch.cat([ids, new[None, :-1].to(ids.device)], dim=1)
    runner = Runner(model, find_sites(model), keep_sets=RankedSets(moments or {}))
    with runner.holding(rule, stream=False), torch.inference_mode():
        return model(input_ids=whole, use_cache=False).logits[0, ids.shape[1] - 1 :].cpu()
