"""Sums of state channels over calibration text (docs/METHODS.md, section 7), by forward passes.

GHOST (arXiv:2602.11408): channel n of a group changes the mixer's output y by H(t) C_n(t) when it
alone is left out, so S_n^2 = mean over tokens, heads of the group and head dims of H^2 C^2 is the
mean squared change of y, exactly. Its factors are the channel's controllability (mean H^2) and
observability (mean C^2); what counts is that they are multiplied token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.hold.recurrence import Recurrence, Scan
from keepset.hold.state import StateMask, Whole, scanning
from keepset.models import check_length
from keepset.rules.masks import top_mask
from keepset.rules.rule import n_kept
from keepset.run.progress import Progress
from keepset.sites.state import StateSite


@dataclass
class Sums:
    """What is known of one site's channels, each (n_groups, n_state) float64."""

    energy: Tensor
    """Mean over tokens, heads and head dims of H^2 C^2."""
    controllability: Tensor
    """Mean of H^2."""
    observability: Tensor
    """Mean of C^2."""
    magnitude: Tensor
    """||row of W_B|| * ||row of W_C||."""
    taylor: Tensor | None = None
    """|sum over tokens of C dL/dC| per token, in nats."""


@dataclass
class _Running:
    energy: Tensor | float = 0.0
    size: Tensor | float = 0.0
    read: Tensor | float = 0.0
    tokens: int = 0

    def add(self, scan: Scan) -> None:
        recurrence = Recurrence(scan)
        sizes = recurrence.sizes(recurrence.empty(), 0, recurrence.tokens)
        reads = recurrence.C.square()
        self.energy += (sizes * reads).sum(dim=(0, 1), dtype=torch.float64).cpu()
        self.size += sizes.sum(dim=(0, 1), dtype=torch.float64).cpu()
        self.read += reads.sum(dim=(0, 1), dtype=torch.float64).cpu()
        self.tokens += scan.x.shape[0] * scan.x.shape[1]

    def result(self, site: StateSite) -> Sums:
        if not bool(torch.isfinite(torch.as_tensor(self.energy)).all()):
            raise ModelError(f"NaN or infinity in the state of {site.name}; try dtype: float32")
        rows = self.tokens * (site.n_heads // site.n_groups) * site.head_dim
        norms = [site.projection(which).double().norm(dim=2).cpu() for which in ("B", "C")]
        return Sums(
            energy=torch.as_tensor(self.energy) / rows,
            controllability=torch.as_tensor(self.size) / rows,
            observability=torch.as_tensor(self.read) / self.tokens,
            magnitude=norms[0] * norms[1],
        )


class _EnoughError(Exception):
    """The layer that is being scored has run; what comes after it is not needed."""


@dataclass
class _Watch(Whole):
    """Sums up the sites in `running`, masks those in `masks`, and may stop after one."""

    running: Mapping[str, _Running]
    masks: dict[str, Tensor] = field(default_factory=dict)
    prune: Callable[[StateSite], Tensor] | None = None
    last: str | None = None

    def scan(self, site: StateSite, scan: Scan) -> Scan:
        if site.key in self.running:
            self.running[site.key].add(scan)
            if site.key == self.last:
                raise _EnoughError
            if self.prune is not None:
                self.masks[site.key] = self.prune(site)
        if site.key not in self.masks:
            return scan
        return StateMask(self.masks).scan(site, scan)


class Scorer:
    """Scores the states of one model on calibration text."""

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[StateSite],
        blocks: Tensor,
        batch_tokens: int,
        progress: Progress | None = None,
        *,
        gradient_tokens: int | None = None,
    ) -> None:
        """Set up.

        Args:
            model: A causal language model in eval mode.
            sites: Its states.
            blocks: (n_blocks, tokens) int64 calibration text.
            batch_tokens: Tokens per forward pass, at least one block.
            progress: Told of every batch.
            gradient_tokens: The same for passes with gradients, which keep the activations of
                every layer; as `batch_tokens` without.
        """
        check_length(model, blocks.shape[1], "calibration blocks", "text.block")
        self.model = model
        self.sites = list(sites)
        self._batches = blocks.split(max(1, batch_tokens // blocks.shape[1]))
        few = batch_tokens if gradient_tokens is None else gradient_tokens
        self._small_batches = blocks.split(max(1, few // blocks.shape[1]))
        self._progress = progress
        self._device = next(model.parameters()).device
        # Scores need no logits; the head is left out where transformers names the body.
        self._body: Any = getattr(model, "base_model", model)

    def _run(self, watch: _Watch, label: str) -> None:
        with scanning(self.model, self.sites, watch), torch.inference_mode():
            for batch in self._batches:
                with suppress(_EnoughError):
                    self._body(input_ids=batch.to(self._device), use_cache=False)
                if self._progress is not None:
                    self._progress.advance(batch.numel(), label)

    def one_shot(self) -> dict[str, Sums]:
        """Score every site of the whole model, in one pass."""
        running = {site.key: _Running() for site in self.sites}
        self._run(_Watch(running), "one shot")
        return {site.key: running[site.key].result(site) for site in self.sites}

    def in_order(self, sparsity: float, score: Callable[[Sums], Tensor]) -> dict[str, Sums]:
        """Score layer by layer, each with the layers before it pruned, as GHOST does.

        The share that a layer keeps in the end is known only when all scores are, so while later
        layers are scored it is pruned by its own scores at the wanted sparsity. With all text in
        one batch this is one forward pass; else one pass per layer, up to it.

        Args:
            sparsity: Share of each layer's channels left out.
            score: What a layer is pruned by.
        """
        running = {site.key: _Running() for site in self.sites}

        def prune(site: StateSite) -> Tensor:
            values = score(running[site.key].result(site))
            return top_mask(values.float(), n_kept(site.n_state, sparsity))

        if len(self._batches) == 1:
            self._run(_Watch(running, prune=prune), f"in order {sparsity:g}")
        else:
            masks: dict[str, Tensor] = {}
            for site in self.sites:
                watch = _Watch({site.key: running[site.key]}, masks, last=site.key)
                self._run(watch, f"in order {sparsity:g} {site.key}")
                masks[site.key] = prune(site)
        return {site.key: running[site.key].result(site) for site in self.sites}

    def gradients(self) -> dict[str, Tensor]:
        """First-order effect of each channel on the loss, with the true gradient.

        Returns:
            Site key -> |sum over tokens of C dL/dC| per predicted token, (n_groups, n_state)
            float64: the derivative of the loss by a factor on what is read of the channel.
        """
        gates = {
            site.key: torch.ones(
                site.n_groups, site.n_state, device=self._device, requires_grad=True
            )
            for site in self.sites
        }
        sums = {site.key: torch.zeros(gates[site.key].shape).double() for site in self.sites}
        predicted = 0
        with scanning(self.model, self.sites, _Gates(gates)):
            for batch in self._small_batches:
                ids = batch.to(self._device)
                logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
                loss = nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
                )
                gradients = torch.autograd.grad(loss, [gates[site.key] for site in self.sites])
                for site, gradient in zip(self.sites, gradients, strict=True):
                    sums[site.key] += gradient.detach().double().cpu()
                predicted += ids[:, 1:].numel()
                if self._progress is not None:
                    self._progress.advance(batch.numel(), "taylor")
        return {key: value.abs() / predicted for key, value in sums.items()}


class _Gates(Whole):
    """Multiplies what is read by one factor per channel."""

    def __init__(self, gates: Mapping[str, Tensor]) -> None:
        self._gates = gates

    def scan(self, site: StateSite, scan: Scan) -> Scan:
        return scan.masked(read=self._gates[site.key])
