"""One pass over the calibration text -> the activation cache, read by all later steps.

The cache holds, per site, float64 sums of every unit over all calibration tokens:

=================  ===============================================================
``abs_sum``        sum_t |h_j(t)|
``square_sum``     sum_t h_j(t)^2
``nonzero``        number of tokens with h_j(t) != 0
``impact_sum``     sum_t |h_j(t)| * ||w_j||_2
``weight_norm``    ||w_j||_2
``taylor_sum``     sum_t h_j(t) dL/dh_j(t), L the summed loss in nats
``taylor_abs_sum`` sum_t |h_j(t) dL/dh_j(t)|
``sample``         raw activations of the first tokens, (n_sample, n_units) float32
=================  ===============================================================

``abs_sum``, ``square_sum`` and ``taylor_sum`` are also kept apart by groups of documents, as
``abs_by_group`` and so on, (n_groups, n_units); ``tokens`` (n_groups,) counts their tokens. A BOS
is no token of the text and in no sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keepset.calibrate import groups as document_groups
from keepset.calibrate.groups import GroupSums
from keepset.errors import ModelError
from keepset.files import archive
from keepset.hold.contexts import with_bos
from keepset.hold.inputs import output_norms, watching
from keepset.models import check_ids, check_length
from keepset.run.progress import Progress
from keepset.sites import AnySite
from keepset.sites.ffn import Site

SAMPLE_TOKENS = 32
FORMAT = "keepset-activations-3"
BY_GROUP = {
    "abs_sum": "abs_by_group",
    "square_sum": "square_by_group",
    "taylor_sum": "taylor_by_group",
}
"""A total -> the same sums, kept apart by groups of documents."""


class _Sums:
    """Running sums of one site; everything is added up in float64."""

    def __init__(self, site: Site, n_groups: int, n_before: int) -> None:
        """`n_before` is how many tokens stand before the text: 1 with a BOS."""
        self.site = site
        self._n_groups = n_groups
        self._text = slice(n_before, None)
        self._sums: dict[str, GroupSums] = {}
        self._samples: list[Tensor] = []

    def _add(self, name: str, values: Tensor, groups: Tensor) -> None:
        if not bool(torch.isfinite(values).all()):
            what = "gradient" if name.startswith("taylor") else "activations"
            raise ModelError(
                f"NaN or infinity in the {what} of {self.site.name}; try dtype: float32"
            )
        self._sums.setdefault(name, GroupSums(self._n_groups)).add(values, groups)

    def add_activations(self, h: Tensor, groups: Tensor) -> None:
        """Add h (batch, tokens, n_units) to the groups (batch,) of its rows."""
        h = h.detach()[:, self._text]
        self._add("abs_sum", h.abs().sum(dim=1, dtype=torch.float64), groups)
        self._add("square_sum", h.double().square().sum(dim=1), groups)
        self._add("nonzero", (h != 0).sum(dim=1).double(), groups)
        tokens = torch.full((len(h),), h.shape[1], dtype=torch.float64)
        self._add("tokens", tokens, groups)
        missing = SAMPLE_TOKENS - sum(len(part) for part in self._samples)
        if missing > 0:
            self._samples.append(h.flatten(0, 1)[:missing].float().cpu())

    def add_gradient(self, h: Tensor, gradient: Tensor, groups: Tensor) -> None:
        """Add the first-order terms of h, detached, and dL/dh: (batch, tokens, n_units)."""
        # A product of two halves can overflow where both are finite.
        product = h[:, self._text].double() * gradient[:, self._text].double()
        self._add("taylor_sum", product.sum(dim=1), groups)
        self._add("taylor_abs_sum", product.abs().sum(dim=1), groups)

    def result(self) -> dict[str, Tensor]:
        norm = output_norms(self.site).double().cpu()
        totals = {name: sums.total() for name, sums in self._sums.items() if name != "tokens"}
        apart = {BY_GROUP[name]: self._sums[name].rows for name in BY_GROUP if name in totals}
        moments = {
            **totals,
            **apart,
            "tokens": self._sums["tokens"].rows,
            "weight_norm": norm,
            "impact_sum": totals["abs_sum"] * norm,
            "sample": torch.cat(self._samples),
        }
        if not all(bool(torch.isfinite(sums).all()) for sums in moments.values()):
            raise ModelError(f"NaN or infinity in the weights or sums of {self.site.name}")
        return moments


def collect_moments(
    model: nn.Module,
    sites: Sequence[AnySite],
    blocks: Tensor,
    *,
    documents: Tensor | None = None,
    bos: int | None = None,
    gradients: bool = False,
    batch_tokens: int = 1024,
    progress: Progress | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Run calibration text once and sum up, for every unit, what every later step needs.

    Args:
        model: A causal language model in eval mode.
        sites: Its sites; those that are not inputs of linear maps are passed over.
        blocks: (n_blocks, tokens) int64 calibration token ids.
        documents: (n_blocks,) int64, the document that each block is from; sums are kept apart by
            groups of them. One document if left out.
        bos: The token that is put before every block, and left out of all sums.
        gradients: Also take the true gradient of the loss (Taylor); about three times the work.
        batch_tokens: Tokens per forward pass, at least one block.
        progress: Told of every batch.

    Returns:
        Site key -> the tensors above.

    Raises:
        ModelError: NaN or infinity in an activation, a gradient or a sum, the message names the
            layer; or in the logits; or there are no blocks, or they are longer than the model's
            positions, or have ids that it does not know.

    Example:
        >>> from keepset import collect_moments, cut_blocks, find_sites, load
        >>> model, tokenizer = load("specimens/relu", dtype="float32")
        >>> blocks = cut_blocks(["The river is long. " * 40], tokenizer, block=32)
        >>> moments = collect_moments(model, find_sites(model), blocks)
        >>> moments["ffn.000"]["abs_sum"].shape  # the sum of |h| of each of 512 neurons
        torch.Size([512])
    """
    n_before = int(bos is not None)
    check_length(model, blocks.shape[1] + n_before, "blocks", "text.block")
    if not len(blocks):
        raise ModelError("there are no calibration blocks; give at least one")
    check_ids(model, with_bos(blocks, bos), "calibration blocks")
    if documents is None:
        documents = torch.zeros(len(blocks), dtype=torch.int64)
    groups = document_groups.deal(documents)
    inputs = [site for site in sites if isinstance(site, Site)]
    n_groups = document_groups.count(groups)
    sums = {site.key: _Sums(site, n_groups, n_before) for site in inputs}
    of_rows = groups

    def action(site: Site, h: Tensor) -> Tensor | None:
        rows = of_rows
        sums[site.key].add_activations(h, rows)
        if not gradients:
            return None
        # The hook frees each gradient as soon as it is used. It must not hold h itself: h holds the
        # hook, and the pass's memory would stay until Python looks for such circles. Returning h
        # puts this very tensor, which may be a reshaped view, on the path of the gradient.
        values = h.detach()
        h.register_hook(lambda gradient: sums[site.key].add_gradient(values, gradient, rows))
        return h

    def require_gradients(_module: nn.Module, _args: Any, embedded: Tensor) -> None:
        embedded.requires_grad_(True)  # no parameter asks for a gradient

    device = next(model.parameters()).device
    # The backward pass keeps every activation and three copies of the logits.
    tokens = batch_tokens // 4 if gradients else batch_tokens
    rows = max(1, tokens // blocks.shape[1])
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    with watching(model, inputs, action), torch.set_grad_enabled(gradients):
        for start in range(0, len(blocks), rows):
            batch, of_rows = blocks[start : start + rows], groups[start : start + rows]
            ids = with_bos(batch, bos).to(device)
            if gradients:
                with embeddings.register_forward_hook(require_gradients):
                    logits = model(input_ids=ids, use_cache=False).logits
                loss = nn.functional.cross_entropy(
                    logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
                )
                loss.backward()
            else:
                logits = model(input_ids=ids, use_cache=False).logits
            # The sums may be finite where what comes after the last site is not.
            if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
                raise ModelError("NaN or infinity in the logits; try dtype: float32")
            if progress is not None:
                progress.advance(batch.numel(), "activations")
    return {key: site.result() for key, site in sums.items()}


def save(
    moments: Mapping[str, Mapping[str, Tensor]], path: str | Path, owner: Mapping[str, Any]
) -> None:
    """Write the cache, whole or not at all.

    Args:
        moments: What `collect_moments` returned.
        path: The .safetensors file.
        owner: What the cache belongs to (model, corpus, settings); checked by `load`.
    """
    tensors = {
        f"{key}.{name}": value for key, site in moments.items() for name, value in site.items()
    }
    archive.save(tensors, path, FORMAT, owner)


def load(path: str | Path, owner: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Read a cache back, and refuse one that belongs to something else.

    Raises:
        CacheError: the file is missing, corrupt, or differs from `owner`; the message names
            what differs.
    """
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in archive.load(path, FORMAT, owner, "activation cache").items():
        key, _, field = name.rpartition(".")
        moments.setdefault(key, {})[field] = value
    return dict(sorted(moments.items()))
