"""Run a model under keep rules: the loss of blocks, and the last words of passages."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

import pandas as pd
import torch
from torch import Tensor, nn

from keepset import kinds
from keepset.errors import ConfigError, ModelError
from keepset.hold.contexts import with_bos
from keepset.hold.windows import Windowed
from keepset.kernels.mixers import mixer_kernels
from keepset.kernels.selection import Selection
from keepset.kinds.recipes import Actions, hold_recipe
from keepset.measure.finite import refuse_infinite
from keepset.measure.loss import token_nll
from keepset.models import check_ids, check_length
from keepset.rules.kinds import KINDS
from keepset.rules.masks import KeepSets, Masks, window_width
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule, describe
from keepset.run.progress import Progress
from keepset.settings import Kernels
from keepset.sites import AnySite
from keepset.sites.families import no_sites
from keepset.text import Encoded

_BLOCK = "text.block (on the command line --block)"


_LEAD_IN_BYTES = 2**28
"""Most that scores of lead-ins take, beyond those of one rule."""
_LeadInKey = tuple[str, str, int, int, bytes]
"""Kind of site, score, its seed, tokens of the window, text."""


class Runner:
    """A model, its sites and what static rules keep; loaded once per job.

    Example:
        >>> from keepset import Rule, Runner, cut_blocks, find_sites, load
        >>> model, tokenizer = load("specimens/relu", dtype="float32")
        >>> blocks = cut_blocks(["The river is long. " * 40], tokenizer, block=32)
        >>> runner = Runner(model, find_sites(model))
        >>> nll = runner.block_nll(blocks, Rule("magnitude", sparsity=0.9, window=1))
        >>> nll.shape == (len(blocks),), nll.dtype
        (True, torch.float64)
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[AnySite],
        *,
        keep_sets: KeepSets | None = None,
        batch_tokens: int = 1024,
        kernels: Kernels | Selection | str | None = None,
        bos: int | None = None,
        centres: Mapping[str, float] | None = None,
    ) -> None:
        """Wrap a model in eval mode.

        Args:
            model: A causal language model.
            sites: The sites to intervene on, of any kinds (`keepset.kinds.find_sites`).
            keep_sets: Rule -> masks, for static rules.
            batch_tokens: Tokens per forward pass, at least one passage.
            kernels: Which implementations run; auto if left out.
            bos: The token that is put before every block, lead-in and passage; None: none is. It
                is never scored, and stands outside of windows.
            centres: Site key -> centre, for scores that are centred (`collect_centres`).
        """
        self.centres = centres
        self.selection = Selection.of(kernels)
        self.model: Any = model
        self.sites = list(sites)
        self.batch_tokens = batch_tokens
        self.bos = bos
        self._keep_sets = keep_sets
        check_ids(model, [] if bos is None else [bos], "the BOS token")
        self._device = next(model.parameters()).device
        self._lead_ins: dict[_LeadInKey, dict[str, Tensor]] = {}

    @property
    def _n_bos(self) -> int:
        return int(self.bos is not None)

    def n_predicted(self, blocks: Tensor) -> int:
        """How many tokens of blocks (n_blocks, tokens) are predicted.

        All where a BOS token stands before each block, else all but the first of each.
        """
        return blocks.shape[0] * (blocks.shape[1] - 1 + self._n_bos)

    def sites_of(self, kind: str) -> list[Any]:
        """The sites of one kind."""
        return [site for site in self.sites if site.kind == kind]

    def lead_in_scores(
        self, rule: Rule, lead_in: Tensor, coming: Iterable[Rule | None] = ()
    ) -> dict[str, Tensor]:
        """Mean token scores over the last window of the texts before some blocks, run dense.

        Args:
            rule: A causal rule; gives the kind of site, the score, its seed and the window.
            lead_in: (n_blocks, tokens) int64, the text before each block.
            coming: Rules that will ask for the same text: the same pass scores it for as many as
                `_LEAD_IN_BYTES` hold.

        Returns:
            Site key -> mean score per unit, (n_blocks, ...) float32. They are kept for the next
            rules.
        """
        key = _lead_in_key(rule, lead_in)
        if key not in self._lead_ins:
            check_length(self.model, lead_in.shape[1] + self._n_bos, "lead-ins", _BLOCK)
            check_ids(self.model, lead_in, "lead-ins")
            body = getattr(self.model, "base_model", self.model)  # no logits are needed
            kind, sites = kinds.of(rule.site), self.sites_of(rule.site)
            causal = [one for one in coming if one is not None and one.choice == "causal"]
            alike = [rule, *(one for one in causal if one.site == rule.site)]
            by_key = {_lead_in_key(one, lead_in): one for one in alike}
            size = 4 * len(lead_in) * sum(site.n_units for site in sites)
            keys = [*by_key][: max(1, _LEAD_IN_BYTES // size)]
            rules, widths = [by_key[one] for one in keys], [one[3] for one in keys]
            with mixer_kernels(self.model, self.selection):
                parts = [
                    kind.lead_in_scores(
                        body, sites, rules, widths, self._contexts(rows), **self._centred(rules)
                    )
                    for rows in self._batches(lead_in)
                ]
            self._lead_ins = {
                one: {name: torch.cat([part[place][name] for part in parts]) for name in scores}
                for place, (one, scores) in enumerate(zip(keys, parts[0], strict=True))
            }
        return self._lead_ins[key]

    def _batches(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows (n, ...) in batches."""
        tokens = rows.shape[1] + self._n_bos
        return rows.split(max(1, self.batch_tokens // tokens))

    def _contexts(self, rows: Tensor) -> Tensor:
        """Rows of text (n, tokens) as the model reads them."""
        return with_bos(rows, self.bos).to(self._device)

    @contextmanager
    def holding(
        self, rule: Rule | Recipe | None, *, noise: int | None = None
    ) -> Iterator[Windowed | Actions | None]:
        """Hold `rule` (None: dense), or a recipe, on the model, which reads separate passages.

        Gives the action of a windowed or dynamic rule, or those of a recipe. `noise` is a seed of
        `keepset.hold.inputs.Windows`, of dynamic rules.
        """
        with mixer_kernels(self.model, self.selection), self._held(rule, noise) as action:
            yield action

    def _held(
        self, rule: Rule | Recipe | None, noise: int | None
    ) -> AbstractContextManager[Windowed | Actions | None]:
        if isinstance(rule, Recipe):
            has_bos = self.bos is not None
            return hold_recipe(
                self.model, self.sites, rule, self.selection, bos=has_bos, noise=noise
            )
        if rule is None or rule.sparsity == 0:
            return nullcontext()
        kind, sites = kinds.of(rule.site), self.sites_of(rule.site)
        if not sites:
            raise ModelError(f"{describe(rule)}: {no_sites(self.model, rule.site)}")
        if rule.window == "corpus":
            return kind.hold_static(self.model, sites, self._masks(rule), self.selection)
        options: dict[str, Any] = {} if noise is None else {"noise": noise}
        options |= {"bos": self.bos is not None, "selection": self.selection}
        options |= self._centred([rule])
        return kind.hold_windows(self.model, sites, rule, **options)

    def _centred(self, rules: Iterable[Rule]) -> dict[str, Any]:
        """The option `centres`, if the score of one of `rules` is centred."""
        scores = [KINDS[rule.site].scores.get(rule.score) for rule in rules]
        centred = any(score is not None and score.centred for score in scores)
        return {"centres": self.centres} if centred else {}

    def _masks(self, rule: Rule) -> Masks:
        try:
            return ({} if self._keep_sets is None else self._keep_sets)[rule]
        except KeyError:
            kind = KINDS[rule.site]
            raise ConfigError(
                f"{describe(rule)}: no {kind.units} were chosen for it; add the score and the"
                f" sparsity to {kind.section}.static and run the workflow again"
            ) from None

    def block_nll(
        self,
        blocks: Tensor,
        rule: Rule | Recipe | None = None,
        lead_in: Tensor | None = None,
        progress: Progress | None = None,
        *,
        noise: int | None = None,
        coming: Iterable[Rule | None] = (),
    ) -> Tensor:
        """Summed negative log-likelihood of each block under a rule.

        Args:
            blocks: (n_blocks, tokens) int64.
            rule: The keep rule, or a recipe; None is dense.
            lead_in: (n_blocks, tokens) the text before each block, for causal rules; without it
                nothing stands before a block.
            progress: Told of every batch.
            noise: Seed of noise in the last bit of what a dynamic rule holds; none if left out.
            coming: Rules that are run next on the same blocks, see `lead_in_scores`.

        Returns:
            (n_blocks,) float64, nats over the predictions of each (`n_predicted`).

        Raises:
            ModelError: blocks are longer than the model's positions or have tokens that it does
                not know, or the loss is not finite; the message names the first layer at fault.
            ConfigError: no token is predicted, or there are more or fewer lead-ins than blocks.
        """
        if self.n_predicted(blocks) < 1:
            raise ConfigError(f"in blocks of shape {tuple(blocks.shape)} no token is predicted")
        check_length(self.model, blocks.shape[1] + self._n_bos, "blocks", _BLOCK)
        check_ids(self.model, blocks, "blocks")
        label = describe(rule)
        before: dict[str, Tensor] = {}
        is_causal = isinstance(rule, Rule) and rule.choice == "causal"
        if isinstance(rule, Rule) and is_causal and rule.sparsity and lead_in is not None:
            if len(lead_in) != len(blocks) or not lead_in.shape[1]:
                raise ConfigError(
                    f"{len(blocks)} blocks need as many lead-ins, got {len(lead_in)} of"
                    f" {lead_in.shape[1]} tokens: give the text before each block"
                )
            before = self.lead_in_scores(rule, lead_in, coming)
        parts: list[Tensor] = []
        with self.holding(rule, noise=noise) as windows, torch.inference_mode():
            start = 0
            for batch in self._batches(blocks):
                ids = self._contexts(batch)
                if isinstance(windows, Windowed) and before:
                    rows = slice(start, start + len(batch))
                    windows.before = {key: scores[rows] for key, scores in before.items()}
                logits = self.model(input_ids=ids, use_cache=False).logits
                parts.append(token_nll(logits, ids, self.selection).sum(dim=1))
                start += len(batch)
                if progress is not None:
                    progress.advance(batch.numel(), label)
        nll = torch.cat(parts).cpu()
        if not bool(torch.isfinite(nll).all()):
            self.blame("the loss is", blocks, rule)
        return nll

    def blame(self, what: str, rows: Iterable[Tensor], rule: Rule | Recipe | None) -> NoReturn:
        """Refuse a result that is not finite, and name the first layer at fault.

        Args:
            what: The result and its verb, for the message.
            rows: The texts that gave it, each (tokens,) int64.
            rule: What the model ran under.

        Raises:
            ModelError: always.
        """
        contexts = (self._contexts(row[None]) for row in rows)
        with self.holding(rule):
            refuse_infinite(self.model, self.sites, contexts, what, describe(rule))

    def last_words(
        self,
        items: Sequence[Encoded],
        rule: Rule | Recipe | None = None,
        progress: Progress | None = None,
    ) -> pd.DataFrame:
        """Whether each item's whole target is the greedy continuation, and its log-probability.

        Args:
            items: Token ids and where the target starts.
            rule: The keep rule, or a recipe; None is dense. Windows start again in each passage.
            progress: Told of every batch.

        Returns:
            One row per item, in order: correct (bool), logprob (nats, summed over the target).

        Raises:
            ModelError: a passage is longer than the model's positions or has tokens that it does
                not know, or a log-probability is not finite; the message names the first layer at
                fault.
            ConfigError: there are no items.
        """
        if not items:
            raise ConfigError("there are no items; give at least one")
        longest = max(items, key=lambda item: len(item.ids))
        # The last token is only predicted, never read.
        length, what = len(longest.ids) - 1 + self._n_bos, f"passages (item {longest.item})"
        check_length(self.model, length, what, longest.remedy)
        for item in items:
            check_ids(self.model, item.ids, f"item {item.item}")
            if item.target_start + self._n_bos == 0:
                raise ModelError(f"item {item.item} has no context, and the model no BOS before it")
        order = sorted(range(len(items)), key=lambda number: len(items[number].ids))
        answers: dict[int, tuple[bool, float]] = {}
        with self.holding(rule) as windows, torch.inference_mode():
            for batch in _batches(order, items, self.batch_tokens):
                encoded = [items[number] for number in batch]
                answers.update(zip(batch, self._last_word_batch(encoded, windows), strict=True))
                if progress is not None:
                    progress.advance(sum(len(item.ids) for item in encoded), describe(rule))
        rows = [answers[number] for number in range(len(items))]
        wrong = [items[n].ids for n, (_, logprob) in enumerate(rows) if not math.isfinite(logprob)]
        if wrong:
            self.blame("a target's log-probability is", map(torch.tensor, wrong), rule)
        return pd.DataFrame(rows, columns=["correct", "logprob"])

    def _last_word_batch(
        self, items: Sequence[Encoded], windows: Windowed | Actions | None
    ) -> list[tuple[bool, float]]:
        lengths = [len(item.ids) - 1 for item in items]
        text = torch.zeros(len(items), max(lengths), dtype=torch.long)
        valid = torch.zeros_like(text, dtype=torch.bool)
        for row, (item, length) in enumerate(zip(items, lengths, strict=True)):
            text[row, :length] = torch.tensor(item.ids[:-1])
            valid[row, :length] = True
        if windows is not None:
            windows.valid = valid.to(self._device)
        # The prediction of a token stands where the token before it was read.
        places = [item.target_start - 1 + self._n_bos for item in items]
        logits = self._tail_logits(self._contexts(text), min(places))
        targets = [item.ids[item.target_start :] for item in items]
        counts = [len(target) for target in targets]
        rows = [row for row, count in enumerate(counts) for _ in range(count)]
        starts = [place - min(places) for place in places]
        at = [start + n for start, count in zip(starts, counts, strict=True) for n in range(count)]
        scores = logits[rows, at].float().log_softmax(dim=-1)  # one row for each target token
        wanted = torch.tensor([token for target in targets for token in target]).to(self._device)
        picked = scores.gather(1, wanted[:, None])[:, 0].double().cpu()
        right = (scores.argmax(dim=-1) == wanted).cpu()
        parts = zip(right.split(counts), picked.split(counts), strict=True)
        return [(bool(correct.all()), float(logprobs.sum())) for correct, logprobs in parts]

    def _tail_logits(self, ids: Tensor, first: int) -> Tensor:
        """Logits at positions first.. only: the head is a fifth of a small model's work."""
        # Padding stands after the text, so a causal model needs no attention mask.
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            keep = ids.shape[1] - first
            head = self.model.get_output_embeddings()
            with nullcontext() if head is None else head.register_forward_pre_hook(_contiguous):
                return self.model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
        return self.model(input_ids=ids, use_cache=False).logits[:, first:]


def _lead_in_key(rule: Rule, lead_in: Tensor) -> _LeadInKey:
    width = window_width(rule.window, lead_in.shape[1])
    return rule.site, rule.score, rule.seed, width, lead_in.numpy().tobytes()


def _contiguous(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook that copies a slice: of the slice itself torch copies the weights once per row."""
    return args[0].contiguous(), *args[1:]


def _batches(
    order: Sequence[int], items: Sequence[Encoded], batch_tokens: int
) -> Iterator[list[int]]:
    """Items of like length together, at most `batch_tokens` with padding."""
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) + 1) * len(items[number].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def perplexity(runner: Runner, blocks: Tensor, rule: Rule | Recipe | None = None) -> float:
    """Token perplexity of blocks (n_blocks, tokens) under a rule that needs no lead-in.

    Example:
        >>> from keepset import Rule, Runner, cut_blocks, find_sites, load, perplexity
        >>> model, tokenizer = load("specimens/relu-l1", dtype="float32")
        >>> blocks = cut_blocks(["The river is long. " * 40], tokenizer, block=32)
        >>> runner = Runner(model, find_sites(model))
        >>> rule = Rule("magnitude", sparsity=0.9, window=1)
        >>> round(perplexity(runner, blocks, rule) / perplexity(runner, blocks), 2)
        1.0
    """
    nll = runner.block_nll(blocks, rule)
    return float((nll.sum() / runner.n_predicted(blocks)).exp())
