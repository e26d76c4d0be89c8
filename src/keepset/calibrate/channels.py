"""Sums of state channels over calibration text (docs/METHODS.md, section 7), by forward passes.

GHOST (arXiv:2602.11408): channel n of a group changes the mixer's output y by H(t) C_n(t) when it
alone is left out, so S_n^2 = mean over tokens, heads of the group and head dims of H^2 C^2 is the
mean squared change of y: exactly, where channels do not influence one another. Under a delta rule
they do, through what is written, and the change is measured too (`Sums.change`). The factors of
S^2 are the channel's controllability (mean H^2) and observability (mean C^2); what counts is that
they are multiplied token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from keepset.calibrate import groups as document_groups
from keepset.calibrate.groups import GroupSums
from keepset.errors import ModelError
from keepset.hold.contexts import with_bos
from keepset.hold.memories import scanning
from keepset.hold.recurrence import Scan
from keepset.hold.state import StateMask, Whole
from keepset.models import check_ids, check_length
from keepset.rules.masks import top_mask
from keepset.rules.rule import n_kept
from keepset.run.progress import Progress
from keepset.sites.state import StateSite


@dataclass
class Sums:
    """What is known of one site's channels, each (n_groups, n_state) float64."""

    ghost: Tensor
    """Mean over tokens, heads and head dims of H^2 C^2, which GHOST's score is the root of."""
    controllability: Tensor
    """Mean of H^2."""
    observability: Tensor
    """Mean of C^2."""
    magnitude: Tensor
    """||row of W_B|| * ||row of W_C||."""
    change: Tensor | None = None
    """Mean squared change of y when the channel alone is left out, measured; None where `ghost` is
    just that, since channels do not influence one another."""
    taylor: Tensor | None = None
    """|sum over tokens of C dL/dC| per token, in nats."""
    left_out: list[Sums] = field(default_factory=list)
    """The same without each group of documents; none where all text is one document."""

    @property
    def energy(self) -> Tensor:
        """Mean squared change of y when the channel alone is left out."""
        return self.ghost if self.change is None else self.change


class _Running:
    """Running sums of one site, kept apart by groups of documents."""

    def __init__(self, n_groups: int, *, measured: bool = False) -> None:
        """`measured`: whether what y changes by is measured where it is not known from H and C."""
        self._n_groups, self._measured = n_groups, measured
        self._ghost, self._size, self._read = (GroupSums(n_groups) for _ in range(3))
        self._change, self._tokens = GroupSums(n_groups), GroupSums(n_groups)

    def add(self, scan: Scan, groups: Tensor, n_before: int) -> None:
        """Add a scan to the groups (batch,) of its rows; `n_before` tokens are not text."""
        sizes = scan.sizes()[:, n_before:]
        reads = scan.C[:, n_before:].float().square()
        self._ghost.add((sizes * reads).sum(dim=1, dtype=torch.float64), groups)
        self._size.add(sizes.sum(dim=1, dtype=torch.float64), groups)
        self._read.add(reads.sum(dim=1, dtype=torch.float64), groups)
        tokens = scan.C.new_full((len(groups),), sizes.shape[1], dtype=torch.float64)
        self._tokens.add(tokens, groups)
        self._measured &= scan.interacts
        if self._measured:
            self._change.add(_changes(scan, n_before), groups)

    def result(self, site: StateSite) -> Sums:
        """The means over all text, and those without each group.

        Raises:
            ModelError: a mean is not finite.
        """
        norms = [site.projection(which).double().norm(dim=2).cpu() for which in ("B", "C")]
        whole, *left_out = (
            self._without(left_out, site, norms[0] * norms[1])
            for left_out in document_groups.left_outs(self._n_groups)
        )
        whole.left_out = left_out
        means = (
            *(whole.ghost, whole.energy, whole.controllability, whole.observability),
            whole.magnitude,
        )
        if not all(bool(torch.isfinite(mean).all()) for mean in means):
            raise ModelError(f"NaN or infinity in the state of {site.name}; try dtype: float32")
        return whole

    def _without(self, left_out: int, site: StateSite, magnitude: Tensor) -> Sums:
        groups = document_groups.others(self._n_groups, left_out)
        tokens = self._tokens.total(groups)
        rows = tokens * (site.n_heads // site.n_groups) * site.head_dim
        return Sums(
            ghost=self._ghost.total(groups) / rows,
            change=self._change.total(groups) / rows if self._measured else None,
            controllability=self._size.total(groups) / rows,
            observability=self._read.total(groups) / tokens,
            magnitude=magnitude,
        )


def _changes(scan: Scan, n_before: int) -> Tensor:
    """Squared change of y when each channel alone is neither written nor read.

    One run of the scan per channel, of all groups at once, since groups do not meet. Where k and q
    are divided by their norms, these stay: a smaller norm would make all of y larger, which the
    norm behind it takes back, and so hide what a small channel does.

    Returns:
        (batch, groups, n_state) float64, summed over tokens, heads and head dims.
    """
    batch, _, groups, n_state = scan.C.shape
    dense = scan.output()[:, n_before:].float()
    changes = scan.C.new_empty(batch, groups, n_state, dtype=torch.float64)
    for channel in range(n_state):
        kept = torch.ones(groups, n_state, dtype=torch.bool, device=scan.C.device)
        kept[:, channel] = False
        change = scan.masked(kept, kept).output()[:, n_before:].float() - dense
        squares = change.square().sum(dim=(1, 3), dtype=torch.float64)  # (batch, heads)
        changes[:, :, channel] = squares.view(batch, groups, -1).sum(dim=2)
    return changes


class _EnoughError(Exception):
    """The layer that is being scored has run; what comes after it is not needed."""


@dataclass
class _Watch(Whole):
    """Sums up the sites in `running`, masks those in `masks`, and may stop after one."""

    running: Mapping[str, _Running]
    masks: dict[str, Tensor] = field(default_factory=dict)
    prune: Callable[[StateSite], Tensor] | None = None
    last: str | None = None
    groups: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """The group of documents of each row of the batch that runs."""
    n_before: int = 0
    """How many tokens stand before the text."""

    def scan(self, site: StateSite, scan: Scan) -> Scan:
        if site.key in self.running:
            self.running[site.key].add(scan, self.groups, self.n_before)
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
        documents: Tensor | None = None,
        bos: int | None = None,
        gradient_tokens: int | None = None,
    ) -> None:
        """Set up.

        Args:
            model: A causal language model in eval mode.
            sites: Its states.
            blocks: (n_blocks, tokens) int64 calibration text.
            batch_tokens: Tokens per forward pass, at least one block.
            progress: Told of every batch.
            documents: (n_blocks,) int64, the document that each block is from; one document if
                left out.
            bos: The token that is put before every block, and left out of all sums.
            gradient_tokens: The same as `batch_tokens` for passes with gradients, which keep the
                activations of every layer; as `batch_tokens` without.

        Raises:
            ModelError: there are no blocks, or they are longer than the model's positions, or have
                ids that it does not know.
        """
        self._n_before = int(bos is not None)
        length = blocks.shape[1] + self._n_before
        check_length(model, length, "calibration blocks", "text.block")
        if not len(blocks):
            raise ModelError("there are no calibration blocks; give at least one")
        check_ids(model, with_bos(blocks, bos), "calibration blocks")
        if documents is None:
            documents = torch.zeros(len(blocks), dtype=torch.int64)
        self.model = model
        self.sites = list(sites)
        few = batch_tokens if gradient_tokens is None else gradient_tokens
        groups = document_groups.deal(documents)
        self._n_groups = document_groups.count(groups)
        ids = with_bos(blocks, bos)
        self._batches, self._small_batches = (
            list(zip(ids.split(rows), groups.split(rows), strict=True))
            for rows in (max(1, tokens // blocks.shape[1]) for tokens in (batch_tokens, few))
        )
        self._progress = progress
        self._device = next(model.parameters()).device
        # Scores need no logits; the head is left out where transformers names the body.
        self._body: Any = getattr(model, "base_model", model)

    def _run(self, watch: _Watch, label: str) -> bool:
        """Run all text; returns whether what the body gives is finite."""
        finite = True
        watch.n_before = self._n_before
        with scanning(self.model, self.sites, watch), torch.inference_mode():
            for batch, watch.groups in self._batches:
                with suppress(_EnoughError):
                    out = self._body(input_ids=batch.to(self._device), use_cache=False)
                    finite &= bool(torch.isfinite(out[0]).all())
                self._advance(batch, label)
        return finite

    def _advance(self, batch: Tensor, label: str) -> None:
        if self._progress is not None:
            self._progress.advance(batch[:, self._n_before :].numel(), label)

    def _empty(self, *, measured: bool = False) -> dict[str, _Running]:
        return {site.key: _Running(self._n_groups, measured=measured) for site in self.sites}

    def one_shot(self, *, gradients: bool = False, measured: bool = False) -> dict[str, Sums]:
        """Score every site of the whole model, in one pass, or two with `gradients` (Taylor).

        `measured`: channels that influence one another are also left out one at a time.

        Raises:
            ModelError: a score, a gradient or what comes behind the last state is not finite.
        """
        running = self._empty(measured=measured)
        finite = self._run(_Watch(running), "one shot")
        scored = {site.key: running[site.key].result(site) for site in self.sites}
        if not finite:
            raise ModelError("NaN or infinity behind the states; try dtype: float32")
        if gradients:
            slopes, predicted = self._slopes()
            for key, sums in scored.items():
                for left_out, part in enumerate([sums, *sums.left_out], start=-1):
                    groups = document_groups.others(self._n_groups, left_out)
                    part.taylor = slopes[key].total(groups).abs() / predicted.total(groups)
        return scored

    def in_order(self, sparsity: float, score: Callable[[Sums], Tensor]) -> dict[str, Sums]:
        """Score layer by layer, each with the layers before it pruned, as GHOST does.

        The share that a layer keeps in the end is known only when all scores are, so while later
        layers are scored it is pruned by its own scores at the wanted sparsity. With all text in
        one batch this is one forward pass; else one pass per layer, up to it.

        Args:
            sparsity: Share of each layer's channels left out.
            score: What a layer is pruned by.
        """
        running = self._empty()

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

        Raises:
            ModelError: a gradient is not finite.
        """
        slopes, predicted = self._slopes()
        return {key: sums.total().abs() / predicted.total() for key, sums in slopes.items()}

    def _slopes(self) -> tuple[dict[str, GroupSums], GroupSums]:
        """Sums over tokens of C dL/dC by site, and how many tokens were predicted."""
        slopes = {site.key: GroupSums(self._n_groups) for site in self.sites}
        predicted = GroupSums(self._n_groups)
        for batch, groups in self._small_batches:
            ids = batch.to(self._device)
            # One gate per row, so that rows of several documents can be told apart.
            gates = {
                site.key: torch.ones(
                    len(ids), 1, site.n_groups, site.n_state,
                    device=self._device, requires_grad=True,
                )
                for site in self.sites
            }  # fmt: skip
            with scanning(self.model, self.sites, _Gates(gates, self._n_before)):
                logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
            )
            gradients = torch.autograd.grad(loss, [gates[site.key] for site in self.sites])
            for site, gradient in zip(self.sites, gradients, strict=True):
                if not bool(torch.isfinite(gradient).all()):
                    raise ModelError(
                        f"NaN or infinity in the gradient of the state of {site.name}; try dtype:"
                        " float32"
                    )
                slopes[site.key].add(gradient[:, 0].double(), groups)
            predicted.add(torch.full((len(ids),), float(ids.shape[1] - 1)).double(), groups)
            self._advance(batch, "taylor")
        return slopes, predicted


class _Gates(Whole):
    """Multiplies what is read by one factor per row and channel, at the tokens of the text."""

    def __init__(self, gates: Mapping[str, Tensor], n_before: int) -> None:
        self._gates = gates
        self._n_before = n_before

    def scan(self, site: StateSite, scan: Scan) -> Scan:
        gate = self._gates[site.key]
        before = torch.ones_like(gate).expand(-1, self._n_before, -1, -1)
        text = gate.expand(-1, scan.C.shape[1] - self._n_before, -1, -1)
        return scan.masked(read=torch.cat([before, text], dim=1))
