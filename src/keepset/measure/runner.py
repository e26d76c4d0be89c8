"""Run a model under keep rules: the loss of blocks, and the last words of passages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from keepset import kinds
from keepset.errors import ConfigError, ModelError
from keepset.hold.windows import Windowed
from keepset.kernels.mixers import mixer_kernels
from keepset.kernels.selection import Selection
from keepset.models import check_length
from keepset.rules.kinds import KINDS
from keepset.rules.masks import KeepSets, Masks, window_width
from keepset.rules.rule import Rule, describe
from keepset.run.progress import Progress
from keepset.settings import Kernels
from keepset.sites import AnySite
from keepset.text import Encoded

# Rows of logits turned into float32 at a time: small enough to stay in the last-level cache.
_LOGIT_ROWS = 128


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
    ) -> None:
        """Wrap a model in eval mode.

        Args:
            model: A causal language model.
            sites: The sites to intervene on, of any kinds (`keepset.kinds.find_sites`).
            keep_sets: Rule -> masks, for static rules.
            batch_tokens: Tokens per forward pass, at least one passage.
            kernels: Which implementations run; auto if left out.
        """
        self.selection = Selection.of(kernels)
        self.model: Any = model
        self.sites = list(sites)
        self.batch_tokens = batch_tokens
        self._keep_sets = keep_sets
        self._device = next(model.parameters()).device
        self._lead_ins: dict[Hashable, dict[int, dict[str, Tensor]]] = {}

    def sites_of(self, kind: str) -> list[Any]:
        """The sites of one kind."""
        return [site for site in self.sites if site.kind == kind]

    def lead_in_scores(self, rule: Rule, lead_in: Tensor) -> dict[str, Tensor]:
        """Mean token scores over the last window of the text before, run dense.

        Args:
            rule: A causal rule; gives the kind of site, the score, its seed and the window.
            lead_in: (1, tokens) int64.

        Returns:
            Site key -> mean score per unit, float32. What one pass gave is kept for the next rule.
        """
        width = window_width(rule.window, lead_in.shape[1])
        key = (rule.site, rule.score, rule.seed, lead_in.numpy().tobytes())
        if width not in self._lead_ins.get(key, {}):
            # No logits are needed, so the head is left out where transformers names the body.
            body = getattr(self.model, "base_model", self.model)
            scores = kinds.of(rule.site).lead_in_scores(
                body, self.sites_of(rule.site), rule, lead_in.to(self._device)
            )
            self._lead_ins = {key: scores}
        return self._lead_ins[key][width]

    @contextmanager
    def holding(
        self, rule: Rule | None, lead_in: Tensor | None = None, *, stream: bool = True
    ) -> Iterator[Windowed | None]:
        """Hold `rule` (None: dense) on the model."""
        with mixer_kernels(self.model, self.selection), self._held(rule, lead_in, stream) as action:
            yield action

    def _held(
        self, rule: Rule | None, lead_in: Tensor | None, stream: bool
    ) -> AbstractContextManager[Windowed | None]:
        if rule is None or rule.sparsity == 0:
            return nullcontext()
        kind, sites = kinds.of(rule.site), self.sites_of(rule.site)
        if not sites:
            raise ModelError(f"{describe(rule)}: the model has no {KINDS[rule.site].units}")
        if rule.window == "corpus":
            return kind.hold_static(self.model, sites, self._masks(rule))
        scores = None
        if rule.choice == "causal" and stream and lead_in is not None:
            scores = self.lead_in_scores(rule, lead_in)
        return kind.hold_windows(self.model, sites, rule, lead_in=scores, stream=stream)

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
        rule: Rule | None = None,
        lead_in: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Summed negative log-likelihood of each block under a rule.

        Args:
            blocks: (n_blocks, tokens) int64, consecutive text.
            rule: The keep rule; None is dense.
            lead_in: (1, tokens) text before the first block, for causal rules.
            progress: Told of every batch.

        Returns:
            (n_blocks,) float64, nats over tokens - 1 predictions each.

        Raises:
            ModelError: blocks are longer than the model's positions, or the loss is not finite;
                the message names the first layer at fault.
        """
        check_length(self.model, blocks.shape[1], "blocks", "text.block")
        label = describe(rule)
        parts = []
        with self.holding(rule, lead_in), torch.inference_mode():
            for batch in blocks.split(max(1, self.batch_tokens // blocks.shape[1])):
                ids = batch.to(self._device)
                logits = self.model(input_ids=ids, use_cache=False).logits
                parts.append(_nll(logits, ids).sum(dim=1))
                if progress is not None:
                    progress.advance(batch.numel(), label)
        nll = torch.cat(parts).cpu()
        if not bool(torch.isfinite(nll).all()):
            self._blame(blocks, rule, lead_in)
        return nll

    def _blame(self, blocks: Tensor, rule: Rule | None, lead_in: Tensor | None) -> None:
        label = describe(rule)
        with self.holding(rule, lead_in), ExitStack() as hooks, torch.inference_mode():
            for site in self.sites:
                module = self.model.get_submodule(site.name)
                check = _finite_check(site.name, label)
                hooks.enter_context(module.register_forward_pre_hook(check, with_kwargs=True))
            for block in blocks.split(1):
                self.model(input_ids=block.to(self._device), use_cache=False)
        raise ModelError(f"the loss is not finite under {label}; try dtype: float32")

    def last_words(
        self,
        items: Sequence[Encoded],
        rule: Rule | None = None,
        progress: Progress | None = None,
    ) -> pd.DataFrame:
        """Whether each item's whole target is the greedy continuation, and its log-probability.

        Args:
            items: Token ids and where the target starts.
            rule: The keep rule; None is dense. Windows start again in each passage.
            progress: Told of every batch.

        Returns:
            One row per item, in order: correct (bool), logprob (nats, summed over the target).

        Raises:
            ModelError: a passage is longer than the model's positions.
        """
        longest = max(items, key=lambda item: len(item.ids))
        what = f"passages (item {longest.item})"
        check_length(self.model, len(longest.ids), what, longest.remedy)
        order = sorted(range(len(items)), key=lambda number: len(items[number].ids))
        answers: dict[int, tuple[bool, float]] = {}
        with self.holding(rule, stream=False) as windows, torch.inference_mode():
            for batch in _batches(order, items, self.batch_tokens):
                encoded = [items[number] for number in batch]
                answers.update(zip(batch, self._last_word_batch(encoded, windows), strict=True))
                if progress is not None:
                    progress.advance(sum(len(item.ids) for item in encoded), describe(rule))
        rows = [answers[number] for number in range(len(items))]
        return pd.DataFrame(rows, columns=["correct", "logprob"])

    def _last_word_batch(
        self, items: Sequence[Encoded], windows: Windowed | None
    ) -> list[tuple[bool, float]]:
        # The last token is only predicted, never read.
        lengths = [len(item.ids) - 1 for item in items]
        ids = torch.zeros(len(items), max(lengths), dtype=torch.long)
        valid = torch.zeros_like(ids, dtype=torch.bool)
        for row, (item, length) in enumerate(zip(items, lengths, strict=True)):
            ids[row, :length] = torch.tensor(item.ids[:-1])
            valid[row, :length] = True
        if windows is not None:
            windows.valid = valid.to(self._device)
        first = min(item.target_start for item in items) - 1
        logits = self._tail_logits(ids.to(self._device), first)
        results = []
        for row, item in enumerate(items):
            target = torch.tensor(item.ids[item.target_start :], device=self._device)
            start = item.target_start - 1 - first
            scores = logits[row, start : start + len(target)].float().log_softmax(dim=-1)
            picked = scores.gather(1, target[:, None]).sum(dtype=torch.float64)
            correct = bool((scores.argmax(dim=-1) == target).all())
            results.append((correct, float(picked)))
        return results

    def _tail_logits(self, ids: Tensor, first: int) -> Tensor:
        """Logits at positions first.. only: the head is a fifth of a small model's work."""
        # Padding stands after the text, so a causal model needs no attention mask.
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            keep = ids.shape[1] - first
            head = self.model.get_output_embeddings()
            with nullcontext() if head is None else head.register_forward_pre_hook(_contiguous):
                return self.model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
        return self.model(input_ids=ids, use_cache=False).logits[:, first:]


def _finite_check(name: str, label: str) -> Callable[..., None]:
    """A hook that refuses NaN and infinity in what the module at `name` is given."""

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if not bool(torch.isfinite(next(tensors)).all()):
            raise ModelError(
                f"NaN or infinity in the activations of {name} under {label}; try dtype: float32"
            )

    return check


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


def _nll(logits: Tensor, ids: Tensor) -> Tensor:
    """Per-token negative log-likelihood in nats: (batch, tokens - 1) float64."""
    rows = []
    targets = ids[:, 1:]
    for row in range(logits.shape[0]):
        parts = []
        for chunk, target in zip(
            logits[row, :-1].split(_LOGIT_ROWS), targets[row].split(_LOGIT_ROWS), strict=True
        ):
            scores = chunk.float()
            picked = scores.gather(1, target[:, None])[:, 0]
            parts.append(torch.logsumexp(scores, dim=1).double() - picked.double())
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def perplexity(runner: Runner, blocks: Tensor, rule: Rule | None = None) -> float:
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
    return float((nll.sum() / (blocks.shape[0] * (blocks.shape[1] - 1))).exp())
