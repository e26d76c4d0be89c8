"""Hold a keep rule on the recurrent state of a running model. All that is swapped is put back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from keepset.errors import ConfigError, ModelError
from keepset.hold.memories import refuse_carried, scanning
from keepset.hold.recurrence import Recurrence, Scan
from keepset.hold.windows import Windowed, not_finite
from keepset.kernels.selection import Selection
from keepset.rules.masks import Masks, spread_windows, window_means, window_width
from keepset.rules.rule import Rule, Window, describe, n_kept
from keepset.rules.scores import CHANNEL_SCORES, token_names
from keepset.sites.state import StateSite

if TYPE_CHECKING:
    from keepset.kernels.numba_scan import Inputs

SCORES_BY_SIZE = ("magnitude", "impact")
"""Scores of a token that are a channel's size times what does not depend on it."""


class Whole:
    """Base of actions that need whole passages: they cannot run single cached steps."""

    def step(self, site: StateSite) -> Tensor:
        """Refuse.

        Raises:
            ModelError: always.
        """
        refuse_carried(site)


class StateMask:
    """The action of a static rule: the channels left out are neither written nor read."""

    def __init__(self, masks: Masks) -> None:
        """Keep the channels that `masks` marks: site key -> (n_groups, n_state) bool."""
        self._masks = masks

    def scan(self, site: StateSite, scan: Scan) -> Scan:
        """Run what is kept alone; where no state is carried, as if there were nothing else."""
        return scan.pruned(self._masks[site.key].to(scan.C.device))

    def step(self, site: StateSite) -> Tensor:
        """The channels of the site that are kept."""
        return self._masks[site.key]


class StateWindows(Windowed, Whole):
    """The action of a windowed or dynamic rule on the state.

    `access` says what a channel that is not kept loses. `read`: the state keeps everything, and C
    reads a part of it. `write`: its state is forgotten, at the start of the window, and nothing
    is written to it within. A window's score is the mean of its tokens' scores, within each group
    of heads: H^2 (`magnitude`), or H^2 C^2 (`impact`, which is GHOST's on the window). A BOS token
    is written and read in full.
    """

    def __init__(self, rule: Rule, **options: Any) -> None:
        """See `Windowed`.

        Raises:
            ConfigError: the rule is static, or its score or access is unknown.
        """
        super().__init__(rule, **options)
        if rule.access not in ("read", "write"):
            raise ConfigError(f"access must be read or write, got {rule.access!r}")
        score = CHANNEL_SCORES.get(rule.score)
        if score is None or score.token is None:
            raise ConfigError(
                f"score {rule.score!r} of a state cannot be taken per token;"
                f" use one of {', '.join(token_names(CHANNEL_SCORES))}"
            )
        self._seeded, self._token_score = score.seeded, score.token

    def scan(self, site: StateSite, scan: Scan) -> Scan | Tensor:
        """Mask what is read, or run the recurrence with what is forgotten."""
        kept = n_kept(site.n_state, self.rule.sparsity)
        if kept == site.n_state or scan.tokens == self._n_bos:
            return scan
        if scan.carries:  # its windows would be scored on a state that starts here
            refuse_carried(site)
        by_size = self._seeded or self.rule.score in SCORES_BY_SIZE
        given = scan.compiled_inputs() if by_size else None
        if given is not None:
            return self._compiled(site, scan.C, given, kept)
        recurrence = scan.recurrence()
        if self.rule.access == "read":
            return scan.masked(read=self._reading(site, recurrence, kept))
        return scan.with_skip(self._forgetting(site, recurrence, kept))

    def _compiled(self, site: StateSite, C: Tensor, given: Inputs, kept: int) -> Tensor:
        """`_reading`, or `_forgetting`, with numba: the same channels, chosen in the kernel."""
        from keepset.kernels.numba_scan import Choice, held_windows  # imported at its first use

        C = C[:, self._n_bos :].float()
        width, forget = window_width(self.rule.window, C.shape[1]), self.rule.access == "write"
        # Random numbers are drawn where the torch path draws them.
        draws = C.split(width, dim=1) if self._seeded and forget else [C]
        weights = torch.cat([self._scores(site, torch.ones_like(part), part) for part in draws], 1)
        causal = self.rule.choice == "causal"
        opening = self._opening(site, weights[:, 0]) if causal and self.before else None
        choice = Choice(kept, width, self._n_bos, causal, forget, by_size=not self._seeded)
        try:
            return held_windows(given, weights, choice, self.valid, opening)
        except ModelError:
            raise not_finite(site.name, describe(self.rule)) from None

    def _reading(self, site: StateSite, recurrence: Recurrence, kept: int) -> Tensor:
        """What is read of a state that keeps everything: (batch, tokens, groups, n) bool."""
        n_bos, tokens = self._n_bos, recurrence.tokens
        sizes = recurrence.sizes(recurrence.empty(), 0, tokens)[:, n_bos:]
        scores = self._scores(site, sizes, recurrence.C[:, n_bos:])
        means = self._means(scores, self.valid, self.rule.window)
        if self.rule.choice == "causal":
            opening = self._opening(site, scores[:, 0])
            means = torch.cat([opening[:, None], means[:, :-1]], dim=1)
        mask = self._best(site, means, kept)
        read = torch.ones_like(recurrence.C, dtype=torch.bool)
        spread = spread_windows(mask.flatten(2), tokens - n_bos, self.rule.window)
        first = int(self._opens_unchosen)
        read[:, n_bos + first :] = spread.view_as(scores)[:, first:]
        return read

    def mean(self, site: StateSite, sizes: Tensor, C: Tensor) -> Tensor:
        """Scores over some tokens of a state that keeps everything: (batch, groups, n)."""
        return self._scores(site, sizes, C).mean(dim=1)

    def _scores(self, site: StateSite, sizes: Tensor, C: Tensor) -> Tensor:
        """Scores of tokens: (batch, tokens, groups, n)."""
        generator = self._generator(site, sizes.device) if self._seeded else None
        return self._token_score(sizes, C, generator)

    def _means(self, scores: Tensor, valid: Tensor | None, window: Window) -> Tensor:
        """Scores of windows: (batch, windows, groups, n)."""
        means = window_means(scores.flatten(2), valid, window)
        return means.unflatten(2, scores.shape[2:])

    def _forgetting(self, site: StateSite, recurrence: Recurrence, kept: int) -> Tensor:
        """Run window after window; what is not kept is zero from its start to its end."""
        tokens, n_bos = recurrence.tokens, self._n_bos
        width = window_width(self.rule.window, tokens - n_bos)
        state = recurrence.empty()
        everything = torch.ones_like(recurrence.C[:, 0], dtype=torch.bool)
        parts = [recurrence.read(state, 0, n_bos, everything)] if n_bos else []
        mask = everything
        for start in range(n_bos, tokens, width):
            stop = min(start + width, tokens)
            valid = None
            if self.valid is not None:
                valid = self.valid[:, start - n_bos : stop - n_bos]
            # Each channel is scored by what it would hold if all were kept in this window.
            sizes = recurrence.sizes(state.clone(), start, stop)
            scores = self._scores(site, sizes, recurrence.C[:, start:stop])
            chosen = self._best(site, self._means(scores, valid, "sequence")[:, 0], kept)
            if self.rule.choice == "oracle":
                mask = chosen
            elif start == n_bos:
                mask = self._best(site, self._opening(site, scores[:, 0]), kept)
                if self._opens_unchosen:
                    parts.append(recurrence.read(state, start, start + 1, everything))
                    start += 1
            if start < stop:
                state *= mask[:, :, None, None]
                parts.append(recurrence.read(state, start, stop, mask))
            mask = chosen
        return torch.cat(parts, dim=1)


class _LastWindows(Whole):
    """Scores the last tokens of every row, of several widths; the scan itself is left alone."""

    def __init__(self, rules: Sequence[Rule], widths: Sequence[int]) -> None:
        self._windows, self._widths = [StateWindows(rule) for rule in rules], widths
        self.scores: list[dict[str, Tensor]] = [{} for _ in rules]
        """For each rule, site key -> (batch, n_groups, n_state)."""

    def scan(self, site: StateSite, scan: Scan) -> Scan:
        sizes, C = scan.sizes(), scan.C.float()
        for windows, width, scores in zip(self._windows, self._widths, self.scores, strict=True):
            scores[site.key] = windows.mean(site, sizes[:, -width:], C[:, -width:])
        return scan


@contextmanager
def hold_static(
    model: nn.Module,
    sites: Sequence[StateSite],
    masks: Masks,
    selection: Selection | None = None,
) -> Iterator[None]:
    """Hold one keep set: its channels alone are written and read."""
    del selection  # what runs the mixers is in place already
    with scanning(model, sites, StateMask(masks)):
        yield


@contextmanager
def hold_windows(
    model: nn.Module, sites: Sequence[StateSite], rule: Rule, **options: Any
) -> Iterator[StateWindows]:
    """Hold a windowed or dynamic rule; `options` are those of `Windowed`."""
    action = StateWindows(rule, **options)
    with scanning(model, sites, action):
        yield action


def lead_in_scores(
    model: nn.Module,
    sites: Sequence[StateSite],
    rules: Sequence[Rule],
    widths: Sequence[int],
    lead_in: Tensor,
    **_: Any,
) -> list[dict[str, Tensor]]:
    """See `keepset.kinds.SiteKind`."""
    action = _LastWindows(rules, widths)
    with scanning(model, sites, action), torch.inference_mode():
        model(input_ids=lead_in, use_cache=False)
    return action.scores
