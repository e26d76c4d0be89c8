"""Sums of routed experts over calibration text: how they are weighed, and what they are for.

==============  ==================================================================================
``abs_sum``     sum of the router's weight over tokens, of all experts, chosen or not
``impact_sum``  sum over tokens of the squared change of the block's output, when the expert alone
                is left out of the choice, so that the next best takes its place
``chosen``      number of tokens that are routed to the expert
==============  ==================================================================================

Each (n_experts,) float64. A token that is not routed to an expert does not change without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keepset.calibrate.sets import RankedSets
from keepset.errors import ModelError
from keepset.files import archive
from keepset.hold.contexts import with_bos
from keepset.hold.experts import routing, routing_without
from keepset.models import check_ids, check_length
from keepset.run.progress import Progress
from keepset.sites.experts import ExpertSite

FORMAT = "keepset-experts-1"
Sums = dict[str, Tensor]


def collect_expert_sums(
    model: nn.Module,
    sites: Sequence[ExpertSite],
    blocks: Tensor,
    *,
    bos: int | None = None,
    batch_tokens: int = 1024,
    progress: Progress | None = None,
) -> dict[str, Sums]:
    """Run calibration text once and sum up what static sets of experts are chosen by.

    The block of a site runs again for the tokens of each expert: about as often as a token has
    experts.

    Args:
        model: A causal language model in eval mode.
        sites: Its routed experts.
        blocks: (n_blocks, tokens) int64 calibration token ids.
        bos: The token that is put before every block, and left out of all sums.
        batch_tokens: Tokens per forward pass, at least one block.
        progress: Told of every batch.

    Returns:
        Site key -> the tensors above.

    Raises:
        ModelError: a router's experts cannot be held; a sum is not finite; or there are no blocks,
            or they are longer than the model's positions, or have ids that it does not know.
    """
    n_before = int(bos is not None)
    check_length(model, blocks.shape[1] + n_before, "blocks", "text.block")
    if not len(blocks):
        raise ModelError("there are no calibration blocks; give at least one")
    check_ids(model, with_bos(blocks, bos), "calibration blocks")
    sums = {site.key: _Sums(site, n_before) for site in sites}
    device = next(model.parameters()).device
    rows = max(1, batch_tokens // blocks.shape[1])
    with _summing(model, sites, sums), torch.inference_mode():
        for batch in blocks.split(rows):
            model(input_ids=with_bos(batch, bos).to(device), use_cache=False)
            if progress is not None:
                progress.advance(batch.numel(), "experts")
    return {key: site.result() for key, site in sums.items()}


class _Sums:
    """Running sums of one site."""

    def __init__(self, site: ExpertSite, n_before: int) -> None:
        self.site = site
        self._n_before = n_before
        self._sums = {
            name: torch.zeros(site.n_units, dtype=torch.float64)
            for name in ("abs_sum", "impact_sum", "chosen")
        }
        self._chosen = torch.empty(0)
        self._measuring = False

    def weigh(self, compute: Callable[[], Tensor]) -> None:
        """Add the router's weights (batch, tokens, n_experts); not those of a run that measures."""
        if self._measuring:
            return
        weights = compute()
        top = weights.topk(min(self.site.top_k, self.site.n_units), dim=-1).indices
        chosen = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, top, True)
        chosen[:, : self._n_before] = False  # the BOS is no token of the text
        self._chosen = chosen.flatten(0, 1)
        text = weights[:, self._n_before :].double()
        self._sums["abs_sum"] += text.sum(dim=(0, 1)).cpu()
        self._sums["chosen"] += self._chosen.sum(dim=0).cpu()

    def measure(self, forward: Callable[..., Any], args: tuple[Any, ...], dense: Tensor) -> None:
        """Add what the block's output `dense` changes by without each expert."""
        x, *others = args
        self._measuring = True
        flat = dense.flatten(0, -2).float()
        for expert in range(self.site.n_units):
            tokens = self._chosen[:, expert].nonzero()[:, 0]
            if not len(tokens):
                continue
            with routing_without(self.site, expert):
                if others:  # what belongs to other tokens cannot be left out of it
                    without = _tensor(forward(x, *others)).flatten(0, -2)[tokens]
                else:
                    without = _tensor(forward(x.flatten(0, -2)[tokens][None])).flatten(0, -2)
            change = (without.float() - flat[tokens]).square().sum(dtype=torch.float64)
            self._sums["impact_sum"][expert] += change.cpu()
        self._measuring = False

    def result(self) -> Sums:
        """The sums.

        Raises:
            ModelError: one is not finite.
        """
        if not all(bool(torch.isfinite(values).all()) for values in self._sums.values()):
            raise ModelError(
                f"NaN or infinity in the experts of {self.site.name}; try dtype: float32"
            )
        return dict(self._sums)


@contextmanager
def _summing(
    model: nn.Module, sites: Sequence[ExpertSite], sums: Mapping[str, _Sums]
) -> Iterator[None]:
    def weigh(site: ExpertSite, weights: Callable[[], Tensor]) -> None:
        sums[site.key].weigh(weights)

    with ExitStack() as stack:
        stack.enter_context(routing(model, sites, weigh))
        for site in sites:

            def measure(
                block: nn.Module, args: tuple[Any, ...], output: Any, site: ExpertSite = site
            ) -> None:
                sums[site.key].measure(block.forward, args, _tensor(output))

            stack.enter_context(site.block.register_forward_hook(measure))
        yield


def _tensor(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def save(sums: Mapping[str, Sums], path: str | Path, owner: Mapping[str, Any]) -> None:
    """Write the sums, whole or not at all; `owner` is what they belong to."""
    tensors = {f"{key}.{name}": value for key, site in sums.items() for name, value in site.items()}
    archive.save(tensors, path, FORMAT, owner)


def rank_file(path: str | Path, owner: Mapping[str, Any]) -> RankedSets:
    """The keep sets that a file of sums gives.

    Raises:
        CacheError: the file is missing, corrupt, or differs from `owner`; the message names what
            differs.
    """
    sums: dict[str, Sums] = {}
    for name, value in archive.load(path, FORMAT, owner, "sums of experts").items():
        key, _, field = name.rpartition(".")
        sums.setdefault(key, {})[field] = value
    return RankedSets(sums, "expert")
