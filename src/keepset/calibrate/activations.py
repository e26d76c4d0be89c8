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
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.files import archive
from keepset.hold.inputs import output_norms, watching
from keepset.models import check_length
from keepset.run.progress import Progress
from keepset.sites import AnySite
from keepset.sites.ffn import Site

SAMPLE_TOKENS = 32
FORMAT = "keepset-activations-2"


class _Sums:
    """Running sums of one site; everything is added up in float64."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.tensors: dict[str, Tensor] = {"weight_norm": output_norms(site).double().cpu()}
        self._samples: list[Tensor] = []

    def _add(self, name: str, value: Tensor) -> None:
        value = value.cpu()
        self.tensors[name] = self.tensors[name] + value if name in self.tensors else value

    def add_activations(self, h: Tensor) -> None:
        """Add h (batch, tokens, n_units)."""
        flat = h.detach().reshape(-1, h.shape[-1])
        size = flat.abs().sum(dim=0, dtype=torch.float64)
        if not bool(torch.isfinite(size).all()):
            raise ModelError(f"NaN or infinity in the activations of {self.site.name}")
        self._add("abs_sum", size)
        self._add("square_sum", flat.double().square().sum(dim=0))
        self._add("nonzero", (flat != 0).sum(dim=0).double())
        missing = SAMPLE_TOKENS - sum(len(part) for part in self._samples)
        if missing > 0:
            self._samples.append(flat[:missing].float().cpu())

    def add_gradient(self, h: Tensor, gradient: Tensor) -> None:
        """Add the first-order terms of h and dL/dh, both (batch, tokens, n_units)."""
        product = (h.detach() * gradient).reshape(-1, h.shape[-1])
        self._add("taylor_sum", product.sum(dim=0, dtype=torch.float64))
        self._add("taylor_abs_sum", product.abs().sum(dim=0, dtype=torch.float64))

    def result(self) -> dict[str, Tensor]:
        norm = self.tensors["weight_norm"]
        impact = self.tensors["abs_sum"] * norm
        return {**self.tensors, "impact_sum": impact, "sample": torch.cat(self._samples)}


def collect_moments(
    model: nn.Module,
    sites: Sequence[AnySite],
    blocks: Tensor,
    *,
    gradients: bool = False,
    batch_tokens: int = 1024,
    progress: Progress | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Run calibration text once and sum up, for every unit, what every later step needs.

    Args:
        model: A causal language model in eval mode.
        sites: Its sites; those that are not inputs of linear maps are passed over.
        blocks: (n_blocks, tokens) int64 calibration token ids.
        gradients: Also take the true gradient of the loss (Taylor); about three times the work.
        batch_tokens: Tokens per forward pass, at least one block.
        progress: Told of every batch.

    Returns:
        Site key -> the tensors above.

    Raises:
        ModelError: NaN or infinity in an activation, the message names the layer; or blocks are
            longer than the model's positions.

    Example:
        >>> from keepset import collect_moments, cut_blocks, find_sites, load
        >>> model, tokenizer = load("specimens/relu", dtype="float32")
        >>> blocks = cut_blocks(["The river is long. " * 40], tokenizer, block=32)
        >>> moments = collect_moments(model, find_sites(model), blocks)
        >>> moments["ffn.000"]["abs_sum"].shape  # the sum of |h| of each of 512 neurons
        torch.Size([512])
    """
    check_length(model, blocks.shape[1], "blocks", "text.block")
    inputs = [site for site in sites if isinstance(site, Site)]
    sums = {site.key: _Sums(site) for site in inputs}

    def action(site: Site, h: Tensor) -> Tensor | None:
        sums[site.key].add_activations(h)
        if not gradients:
            return None
        # The hook frees each gradient as soon as it is used. Returning h puts this very tensor,
        # which may be a reshaped view, on the path of the gradient.
        h.register_hook(lambda gradient: sums[site.key].add_gradient(h, gradient))
        return h

    def require_gradients(_module: nn.Module, _args: Any, embedded: Tensor) -> None:
        embedded.requires_grad_(True)  # no parameter asks for a gradient

    device = next(model.parameters()).device
    # The backward pass keeps every activation and three copies of the logits.
    tokens = batch_tokens // 4 if gradients else batch_tokens
    rows = max(1, tokens // blocks.shape[1])
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    with watching(model, inputs, action), torch.set_grad_enabled(gradients):
        for batch in blocks.split(rows):
            ids = batch.to(device)
            if gradients:
                with embeddings.register_forward_hook(require_gradients):
                    logits = model(input_ids=ids, use_cache=False).logits
                loss = nn.functional.cross_entropy(
                    logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
                )
                loss.backward()
            else:
                model(input_ids=ids, use_cache=False)
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
