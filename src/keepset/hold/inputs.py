"""Hold a keep rule on the inputs of linear maps. Hooks are always removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from keepset.errors import ConfigError, ModelError
from keepset.hold import expert_neurons
from keepset.hold.gates import seeing_gates
from keepset.hold.windows import Windowed, not_finite
from keepset.kernels.selection import NUMBA, Selection
from keepset.rules.masks import spread_windows, window_means, window_width
from keepset.rules.rule import Rule, describe, n_kept
from keepset.rules.scores import NEURON_SCORES, site_seed, token_score
from keepset.sites.expert_neurons import ExpertNeurons
from keepset.sites.ffn import Site

Action = Callable[[Site, Tensor], Tensor | None]
"""Sees h (batch, tokens, n_units) at a site; returns a replacement, or None to leave it alone."""


@contextmanager
def watching(model: nn.Module, sites: Sequence[Site], action: Action) -> Iterator[None]:
    """Call `action` with the activations of every site, at every forward pass.

    A module that is shared over depths is one site per call; calls are counted within a forward
    pass of `model`. Several modules that read one tensor are one site, and one call of `action`.
    All hooks are removed on exit, also after an exception.
    """
    shape: tuple[int, ...] = ()
    calls: Counter[nn.Module] = Counter()
    by_call = {reader: site for site in sites for reader in site.readers}
    # What other readers of a tensor are given, and how many of them are still to come.
    waiting: dict[Site, tuple[Tensor | None, int]] = {}

    def on_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal shape
        calls.clear()
        waiting.clear()
        shape = pass_shape(args, kwargs)

    def on_reader(
        reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        site = by_call.get((reader, calls[reader]))
        calls[reader] += 1
        if site is None:
            return None
        h = args[0] if args else kwargs["hidden_states"]
        if site in waiting:
            changed, left = waiting.pop(site)
        else:
            # Some families flatten (batch, tokens) before the FFN.
            changed, left = action(site, h.view(*shape, h.shape[-1])), len(site.readers)
        if left > 1:
            waiting[site] = changed, left - 1
        if changed is None:
            return None
        changed = changed.view(h.shape)
        if args:
            return (changed, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed}

    def on_experts(site: ExpertNeurons, h: Tensor) -> Tensor | None:
        changed = action(site, h.view(*shape, h.shape[-1]))
        return None if changed is None else changed.view(h.shape)

    with ExitStack() as stack:
        stack.enter_context(model.register_forward_pre_hook(on_forward, with_kwargs=True))
        linear = [site for site in sites if not isinstance(site, ExpertNeurons)]
        for module in dict.fromkeys(reader for site in linear for reader, _ in site.readers):
            stack.enter_context(module.register_forward_pre_hook(on_reader, with_kwargs=True))
        for site in sites:
            if isinstance(site, ExpertNeurons):
                stack.enter_context(expert_neurons.seeing(site, on_experts))
        yield


def pass_shape(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """(batch, tokens) of a forward pass, from what the model is called with."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    shape: tuple[int, ...] = (kwargs["inputs_embeds"] if ids is None else ids).shape[:2]
    return shape


def cached_tokens(kwargs: Mapping[str, Any]) -> int | None:
    """How many tokens the cache holds that a forward pass goes on with.

    Caches of states alone do not count them: 1 where they hold any. None where a cache does not
    say even that.
    """
    caches = (kwargs.get(name) for name in ("past_key_values", "cache_params", "state"))
    cache = next((one for one in caches if one is not None), None)
    if cache is None:
        return 0
    if not hasattr(cache, "get_seq_length"):
        return None
    try:
        return int(cache.get_seq_length())
    except ValueError:  # no layer with keys
        return int(cache.has_previous_state())


@contextmanager
def whole_passages(model: nn.Module) -> Iterator[None]:
    """Refuse forward passes that go on with a cache: their first token is not a row's first.

    Raises:
        ModelError: on such a pass.
    """

    def on_forward(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        if cached_tokens(kwargs) != 0:
            raise ModelError(
                f"{type(model).__name__}: this rule holds on whole passages: give use_cache=False,"
                " or decode with keepset.sparse_decoding where it can"
            )

    with model.register_forward_pre_hook(on_forward, with_kwargs=True):
        yield


def rules_run_by(
    selection: Selection | None, device: torch.device, dtype: torch.dtype
) -> Literal["torch", "numba"]:
    """What runs rules on the inputs of linear maps; without a selection plain torch.

    Raises:
        ConfigError: numba is chosen by name and cannot run on the device.
    """
    numba = selection is not None and selection.may_use_numba("ffn", device)
    return "numba" if numba and dtype in (torch.float32, torch.bfloat16) else "torch"


def output_norms(site: Site) -> Tensor:
    """||w_j||_2 of every unit's column, over all that read it: (n_units,) float32."""
    norms = [columns.float().norm(dim=1) for columns in site.columns()]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm(dim=0)


class Windows(Windowed):
    """The action of a windowed or dynamic rule on the inputs of linear maps.

    The first token of a row, the BOS token where there is one, is run dense under every rule: it
    is the attention sink, and no set chosen on later tokens keeps its large units.
    """

    def __init__(
        self,
        rule: Rule,
        *,
        noise: int | None = None,
        thresholds: Mapping[str, float] | None = None,
        centres: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        """See `Windowed`.

        Args:
            rule: The rule.
            thresholds: Site key -> the least score that is kept, in the place of the share that a
                dynamic rule keeps.
            centres: Site key -> what units that are left out take in the place of zero, for scores
                that are centred.
            noise: Seed of noise in the last bit of every h, as another machine's kernels would
                make; none where left out.
            options: Those of `Windowed`.

        Raises:
            ConfigError: the rule is static, or its score is centred and no centres are given.
        """
        super().__init__(rule, **options)
        score = NEURON_SCORES.get(rule.score)
        self._is_centred = score is not None and score.centred
        if self._is_centred and centres is None:
            raise ConfigError(
                f"{describe(rule)}: score {rule.score} needs the centres of calibration text:"
                " give Runner(..., centres=collect_centres(...)), or run it in a study"
            )
        self._centres = centres or {}
        self._seeded = score is not None and score.seeded
        self._needs_norms = score is not None and score.needs_norms
        self.reads_gate = score is not None and score.reads_gate
        self._of_h_alone = rule.method == "dynamic" and score is not None and score.decodes
        self.gates: dict[str, Tensor] = {}
        self._thresholds = thresholds or {}
        self._norms: dict[str, Tensor] = {}
        self._noise = noise
        self._noises: dict[str, np.random.Generator] = {}

    def score(self, site: Site, h: Tensor) -> Tensor:
        """Score every unit at every token: (batch, tokens, n_units) float32."""
        if self.reads_gate:
            # Scores are of the text, and so are windows: a gate is read where h is.
            h = self.gates[site.key].view(len(h), -1, site.n_units)[:, -h.shape[1] :]
        if self._is_centred:
            h = h - self._centre(site)
        generator = self._generator(site, h.device) if self._seeded else None
        return token_score(self.rule.score, h, self._output_norms(site), generator)

    def _masked(self, site: Site, h: Tensor, mask: Tensor) -> Tensor:
        """h where the mask is, else zero, or the site's centre."""
        if not self._is_centred:
            return h * mask
        return torch.where(mask, h, h.new_tensor(self._centre(site)))

    def _centre(self, site: Site) -> float:
        """What units of a site that are left out take."""
        try:
            return self._centres[site.key]
        except KeyError:
            raise ConfigError(
                f"{describe(self.rule)}: the centres that are given have none of {site.key}"
                f" ({site.name}); take them of all sites of the rule's kind"
            ) from None

    def _output_norms(self, site: Site) -> Tensor | None:
        if not self._needs_norms:
            return None
        if site.key not in self._norms:
            self._norms[site.key] = output_norms(site)
        return self._norms[site.key]

    def __call__(self, site: Site, h: Tensor) -> Tensor | None:
        """Mask h (batch, tokens, n_units)."""
        kept, above = n_kept(site.n_units, self.rule.sparsity), site.key in self._thresholds
        if not above and (kept == site.n_units or h.shape[1] == self._n_bos):
            return None
        if self._noise is not None:
            h = self._rounded_elsewhere(site, h, self._noise)
        if above:
            return self._above(site, h, self._thresholds[site.key])
        path = rules_run_by(self.selection, h.device, h.dtype)
        hold = self._held_by_numba if path == NUMBA and not self._is_centred else self._held
        return hold(site, h, kept)

    def _above(self, site: Site, h: Tensor, least: float) -> Tensor:
        """h where its score is no less than `least`, and all of a row's first token."""
        scores = self.score(site, h)
        if bool(scores.isnan().any()):
            raise not_finite(site.name, describe(self.rule))
        held = self._masked(site, h, scores >= least)
        held[:, 0] = h[:, 0]
        return held

    def _held(self, site: Site, h: Tensor, kept: int) -> Tensor:
        """The plain reference: h where the masks of its windows are."""
        text = h[:, self._n_bos :]
        # A zero |h| leaves nothing to choose; a random score, or what came before, says nothing
        # about h.
        zeros_matter = self._seeded or self.rule.choice == "causal"
        mask = self._best(site, self._ranks(site, text), kept, zeros_matter=zeros_matter)
        spread = spread_windows(mask, text.shape[1], self.rule.window)
        masked = self._masked(site, text, spread)
        if self._n_dense > self._n_bos:
            masked[:, 0] = text[:, 0]
        return torch.cat([h[:, : self._n_bos], masked], dim=1) if self._n_bos else masked

    def _ranks(self, site: Site, text: Tensor) -> Tensor:
        """What each window of text (batch, tokens, units) chooses by: (batch, windows, units)."""
        scores = self.score(site, text)
        means = window_means(scores, self.valid, self.rule.window)
        if self.rule.choice != "causal":
            return means
        opening = self._opening(site, scores[:, 0])
        return torch.cat([opening[:, None], means[:, :-1]], dim=1)

    @property
    def _n_dense(self) -> int:
        """How many of a row's tokens run dense: the first, and the first of text without a set."""
        return self._n_bos + int(not self._n_bos or self._opens_unchosen)

    def _held_by_numba(self, site: Site, h: Tensor, kept: int) -> Tensor:
        """The same by `keepset.kernels.numba_ffn`, which chooses and masks in one go."""
        from keepset.kernels import numba_ffn  # compiled at its first use

        opening = (self._n_bos, self._n_dense)
        try:
            if self._of_h_alone:
                return numba_ffn.keep_by_token(h, kept, self._output_norms(site), opening)
            text = h[:, self._n_bos :]
            width = window_width(self.rule.window, text.shape[1])
            return numba_ffn.keep_by_window(h, self._ranks(site, text), kept, width, opening)
        except ModelError:
            raise not_finite(site.name, describe(self.rule)) from None

    def _rounded_elsewhere(self, site: Site, h: Tensor, noise: int) -> Tensor:
        """h with the last bit of each number one up, one down, or as it was."""
        if site.key not in self._noises:
            self._noises[site.key] = np.random.Generator(
                np.random.SFC64(site_seed(noise, site.key))
            )
        # A byte per number: drawing them is most of the work, and torch has none that is as fast.
        signs = self._noises[site.key].integers(-1, 2, size=h.shape, dtype=np.int8)
        # Half an epsilon of h is at least half, and less than one, of its last bit.
        half = torch.finfo(h.dtype).eps / 2
        return h.addcmul(h, torch.from_numpy(signs).to(h.device, h.dtype), value=half)


@contextmanager
def hold_windows(
    model: nn.Module, sites: Sequence[Site], rule: Rule, **options: Any
) -> Iterator[Windows]:
    """Hold a windowed or dynamic rule; `options` are those of `Windows`."""
    action = Windows(rule, **options)
    with ExitStack() as stack:
        stack.enter_context(whole_passages(model))
        stack.enter_context(watching(model, sites, action))
        if action.reads_gate:
            stack.enter_context(seeing_gates(sites, action.gates))
        yield action


def lead_in_scores(
    model: nn.Module,
    sites: Sequence[Site],
    rules: Sequence[Rule],
    widths: Sequence[int],
    lead_in: Tensor,
    **options: Any,
) -> list[dict[str, Tensor]]:
    """See `keepset.kinds.SiteKind`; `options` are those of `Windows`."""
    windows = [Windows(rule, **options) for rule in rules]
    scores: list[dict[str, Tensor]] = [{} for _ in rules]

    def action(site: Site, h: Tensor) -> None:
        for window, width, means in zip(windows, widths, scores, strict=True):
            means[site.key] = window.score(site, h[:, -width:]).mean(dim=1)

    with ExitStack() as stack:
        stack.enter_context(watching(model, sites, action))
        for window in windows:
            if window.reads_gate:
                stack.enter_context(seeing_gates(sites, window.gates))
        stack.enter_context(torch.inference_mode())
        model(input_ids=lead_in, use_cache=False)
    return scores
