"""Run a model under keep rules: the loss of blocks, and the last words of passages."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from keepset.calibrate.channels import Masks
from keepset.errors import ConfigError, ModelError
from keepset.hold.inputs import (
    Action,
    Static,
    Windows,
    output_norms,
    sliceable,
    sliced,
    watching,
)
from keepset.hold.state import LastWindow, StateMask, StateWindows, scanning
from keepset.kernels.mixers import mixer_kernels
from keepset.kernels.selection import Selection
from keepset.models import check_length
from keepset.rules.masks import static_order, window_means
from keepset.rules.rule import Rule, describe
from keepset.rules.scores import Moments, site_seed, token_score
from keepset.run.progress import Progress
from keepset.settings import Kernels
from keepset.sites import Site, StateSite
from keepset.text import Encoded

# Rows of logits turned into float32 at a time: small enough to stay in the last-level cache.
_LOGIT_ROWS = 128


class Runner:
    """A model, its sites and what keep rules need to know of them; loaded once per job."""

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        *,
        moments: Mapping[str, Moments] | None = None,
        states: Sequence[StateSite] = (),
        state_sets: Mapping[tuple[str, int, float], Masks] | None = None,
        batch_tokens: int = 1024,
        kernels: Kernels | Selection | str | None = None,
    ) -> None:
        """Wrap a model in eval mode.

        Args:
            model: A causal language model.
            sites: The FFN sites to intervene on.
            moments: Site key -> calibration sums, for static rules.
            states: The state sites to intervene on.
            state_sets: (score, seed, sparsity) -> channels kept, for static rules on states.
            batch_tokens: Tokens per forward pass, at least one passage.
            kernels: Which implementations run; auto if left out.
        """
        self.selection = Selection.of(kernels)
        self.model: Any = model
        self.sites = list(sites)
        self.states = list(states)
        self.state_sets = state_sets or {}
        self.batch_tokens = batch_tokens
        self._moments = moments or {}
        self._norms = {site.key: output_norms(site) for site in sites}
        self._device = next(model.parameters()).device
        self._lead_ins: dict[Hashable, dict[int, dict[str, Tensor]]] = {}

    def lead_in_scores(self, rule: Rule, lead_in: Tensor) -> dict[str, Tensor]:
        """Mean token scores over the last window of the text before, run dense.

        Args:
            rule: A causal rule; gives the score, its seed and the window.
            lead_in: (1, tokens) int64.

        Returns:
            Site key -> (n_units,) float32. Rules of one score and seed share one pass.
        """
        length = lead_in.shape[1]
        width = length if rule.window == "sequence" else min(int(rule.window), length)
        key = (rule.score, rule.seed, lead_in.numpy().tobytes())
        if width not in self._lead_ins.get(key, {}):
            usual = {2**power for power in range(length.bit_length())} | {length}
            self._lead_ins = {key: self._score_lead_in(rule, lead_in, usual | {width})}
        return self._lead_ins[key][width]

    def _score_lead_in(
        self, rule: Rule, lead_in: Tensor, widths: Collection[int]
    ) -> dict[int, dict[str, Tensor]]:
        scores: dict[int, dict[str, Tensor]] = {width: {} for width in widths}

        def action(site: Site, h: Tensor) -> None:
            generator = torch.Generator(h.device).manual_seed(site_seed(rule.seed, site.key))
            tokens = token_score(rule.score, h, self._norms[site.key], generator)
            for width in widths:
                means = window_means(tokens[:, -width:], None, "sequence")
                scores[width][site.key] = means[0, 0]

        # No logits are needed, so the head is left out where transformers names the body.
        body: Any = getattr(self.model, "base_model", self.model)
        with watching(body, self.sites, action), torch.inference_mode():
            body(input_ids=lead_in.to(self._device), use_cache=False)
        return scores

    @contextmanager
    def holding(
        self, rule: Rule | None, lead_in: Tensor | None = None, *, stream: bool = True
    ) -> Iterator[Windows | StateWindows | None]:
        """Hold `rule` (None: dense) on the model."""
        with (
            mixer_kernels(self.model, self.selection),
            self._holding(rule, lead_in, stream) as windows,
        ):
            yield windows

    @contextmanager
    def _holding(
        self, rule: Rule | None, lead_in: Tensor | None, stream: bool
    ) -> Iterator[Windows | StateWindows | None]:
        if rule is None or rule.sparsity == 0:
            yield None
        elif rule.site == "state":
            with self._holding_state(rule, lead_in, stream) as windows:
                yield windows
        elif rule.window == "corpus":
            with self._static(rule):
                yield None
        else:
            before = None
            if rule.choice == "causal" and stream and lead_in is not None:
                before = self.lead_in_scores(rule, lead_in)
            action = Windows(rule, norms=self._norms, lead_in=before, stream=stream)
            with watching(self.model, self.sites, action):
                yield action

    @contextmanager
    def _holding_state(
        self, rule: Rule, lead_in: Tensor | None, stream: bool
    ) -> Iterator[StateWindows | None]:
        if not self.states:
            raise ModelError(f"{describe(rule)}: the model has no recurrent state")
        if rule.window == "corpus":
            with scanning(self.model, self.states, StateMask(self._state_set(rule))):
                yield None
            return
        before = None
        if rule.choice == "causal" and stream and lead_in is not None:
            last = LastWindow(rule)
            body: Any = getattr(self.model, "base_model", self.model)
            with scanning(self.model, self.states, last), torch.inference_mode():
                body(input_ids=lead_in.to(self._device), use_cache=False)
            before = last.scores
        action = StateWindows(rule, lead_in=before, stream=stream)
        with scanning(self.model, self.states, action):
            yield action

    def _state_set(self, rule: Rule) -> Masks:
        key = (rule.score, rule.seed, rule.sparsity)
        if key not in self.state_sets:
            raise ConfigError(
                f"{describe(rule)}: no channels were chosen for it; add the score and the sparsity"
                " to state.static and run the workflow again"
            )
        return self.state_sets[key]

    @contextmanager
    def _static(self, rule: Rule) -> Iterator[None]:
        order = static_order(rule, self._moments)
        cut = [site for site in self.sites if sliceable(site)]
        rest = [site for site in self.sites if not sliceable(site)]
        action: Action = Static(order, rule.sparsity)
        with sliced(cut, order, rule.sparsity), watching(self.model, rest, action):
            yield

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
        def action(site: Site, h: Tensor) -> None:
            if not bool(torch.isfinite(h).all()):
                raise ModelError(
                    f"NaN or infinity in the activations of {site.name} under {describe(rule)};"
                    " try dtype: float32"
                )

        with self.holding(rule, lead_in), watching(self.model, self.sites, action):
            for block in blocks.split(1):
                with torch.inference_mode():
                    self.model(input_ids=block.to(self._device), use_cache=False)
        raise ModelError(f"the loss is not finite under {describe(rule)}; try dtype: float32")

    def last_words(
        self,
        items: Sequence[Encoded],
        rule: Rule | None = None,
        progress: Progress | None = None,
    ) -> pd.DataFrame:
        """Whether each item's whole target is the greedy continuation, and its log-probability.

        Args:
            items: Token ids and where the target starts.
            rule: The keep rule; None is dense. Windows start anew in each passage.
            progress: Told of every batch.

        Returns:
            One row per item, in order: correct (bool), logprob (nats, summed over the target).

        Raises:
            ModelError: a passage is longer than the model's positions.
        """
        longest = max(len(item.ids) for item in items)
        check_length(self.model, longest, "passages", "the task's max_words")
        order = sorted(range(len(items)), key=lambda at: len(items[at].ids))
        found: dict[int, tuple[bool, float]] = {}
        with self.holding(rule, stream=False) as windows, torch.inference_mode():
            for batch in _batches(order, items, self.batch_tokens):
                results = self._last_word_batch([items[at] for at in batch], windows)
                found.update(zip(batch, results, strict=True))
                if progress is not None:
                    progress.advance(sum(len(items[at].ids) for at in batch), describe(rule))
        rows = [found[at] for at in range(len(items))]
        return pd.DataFrame(rows, columns=["correct", "logprob"])

    def _last_word_batch(
        self, items: Sequence[Encoded], windows: Windows | StateWindows | None
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
            with _contiguous_input(self.model.get_output_embeddings()):
                return self.model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
        return self.model(input_ids=ids, use_cache=False).logits[:, first:]


@contextmanager
def _contiguous_input(head: nn.Module | None) -> Iterator[None]:
    """Hand `head` a copy of a slice: of the slice itself torch copies the weights once per row."""
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def _batches(
    order: Sequence[int], items: Sequence[Encoded], batch_tokens: int
) -> Iterator[list[int]]:
    """Items of like length together, at most `batch_tokens` with padding."""
    batch: list[int] = []
    for at in order:
        if batch and (len(batch) + 1) * len(items[at].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def _nll(logits: Tensor, ids: Tensor) -> Tensor:
    """Per-token negative log-likelihood in nats: (batch, tokens - 1) float64."""
    rows = []
    targets = ids[:, 1:]
    for at in range(logits.shape[0]):
        parts = []
        for chunk, target in zip(
            logits[at, :-1].split(_LOGIT_ROWS), targets[at].split(_LOGIT_ROWS), strict=True
        ):
            scores = chunk.float()
            picked = scores.gather(1, target[:, None])[:, 0]
            parts.append(torch.logsumexp(scores, dim=1).double() - picked.double())
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def perplexity(runner: Runner, blocks: Tensor, rule: Rule | None = None) -> float:
    """Token perplexity of blocks (n_blocks, tokens) under a rule that needs no lead-in."""
    nll = runner.block_nll(blocks, rule)
    return float((nll.sum() / (blocks.shape[0] * (blocks.shape[1] - 1))).exp())
