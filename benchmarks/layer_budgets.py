"""Does it matter that every layer leaves out the same share? One budget for all layers instead.

    python benchmarks/layer_budgets.py results/embedded relu relu-l1 swiglu --corpus wiki

Uniform: every layer keeps the (1 - sparsity) largest |h|, as the study does; zeros are not counted
as kept. Global: what lies above one threshold is kept, whichever layer it is in; the threshold is
the sparsity's quantile on calibration text, of |h| (dynamic) or of mean |h| per unit (static).
Perplexity over dense, and the share that each layer keeps in evaluation, go to
benchmarks/layer_budgets.csv.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import studied
import torch
from torch import Tensor

from keepset import text
from keepset.hold.inputs import Action, watching
from keepset.measure.runner import Runner, perplexity
from keepset.sites.ffn import Site

SPARSITIES = (0.8, 0.9, 0.95)
Keep = Callable[[Site, Tensor], Tensor]


def quantile(values: list[Tensor], share: float) -> float:
    """The largest of the `share` smallest values."""
    # torch.quantile takes no more than 16 million values.
    pooled = torch.cat([part.flatten() for part in values])
    return float(pooled.kthvalue(max(1, int(share * len(pooled)))).values)


def rules(sizes: dict[str, Tensor], sparsity: float) -> Iterator[tuple[str, str, Keep]]:
    """(method, budget, which of h to keep)."""
    means = {key: size.mean(dim=0) for key, size in sizes.items()}
    per_token = quantile(list(sizes.values()), sparsity)
    per_unit = quantile(list(means.values()), sparsity)
    per_site = {key: quantile([mean], sparsity) for key, mean in means.items()}
    yield "dynamic", "uniform", lambda _, h: h.abs() > _kth(h.abs(), sparsity)
    yield "dynamic", "global", lambda _, h: h.abs() > per_token
    yield "static", "uniform", lambda site, h: (means[site.key] > per_site[site.key]).expand_as(h)
    yield "static", "global", lambda site, h: (means[site.key] > per_unit).expand_as(h)


def _kth(sizes: Tensor, sparsity: float) -> Tensor:
    return sizes.kthvalue(max(1, int(sparsity * sizes.shape[-1])), dim=-1, keepdim=True).values


def budget_rows(runner: Runner, blocks: text.Blocks) -> Iterator[dict[str, object]]:
    """One row per method, budget and sparsity."""
    sizes = studied.magnitudes(runner, blocks.calibration)
    dense = perplexity(runner, blocks.evaluation)
    for sparsity in SPARSITIES:
        for method, budget, keep in rules(sizes, sparsity):
            shares: dict[str, list[float]] = {site.name: [] for site in runner.sites}
            with watching(runner.model, runner.sites, _masking(keep, shares)):
                ratio = perplexity(runner, blocks.evaluation) / dense
            kept = [sum(share) / len(share) for share in shares.values()]
            yield {
                "method": method,
                "budget": budget,
                "sparsity": sparsity,
                "ratio": ratio,
                "kept": sum(kept) / len(kept),
                "kept_by_layer": " ".join(f"{share:.3f}" for share in kept),
            }


def _masking(keep: Keep, shares: dict[str, list[float]]) -> Action:
    def action(site: Site, h: Tensor) -> Tensor:
        mask = keep(site, h)
        shares[site.name].append(float(mask.float().mean()))
        return h * mask

    return action


if __name__ == "__main__":
    studied.main(__file__, __doc__, budget_rows)
