"""How activity spreads over the units of an FFN: what a static set can and cannot hold.

    python benchmarks/activity.py results/embedded relu relu-l1 swiglu --corpus wiki

Per layer, on evaluation text: units per token that are not exactly zero, the share of units that
never are, and the share of the sum of |h| that the tenth of the units with the largest mean |h|
holds. Written to benchmarks/activity.csv.
"""

from __future__ import annotations

from collections.abc import Iterator

import studied

from keepset import text
from keepset.measure.runner import Runner


def activity_rows(runner: Runner, blocks: text.Blocks) -> Iterator[dict[str, object]]:
    """One row per layer."""
    sizes = studied.magnitudes(runner, blocks.evaluation)
    for site in runner.sites:
        size = sizes[site.key]
        mean = size.mean(dim=0).sort(descending=True).values
        yield {
            "layer": site.name,
            "units": size.shape[1],
            "active_per_token": float((size > 0).sum(dim=1).float().mean()),
            "never_active": float((size.amax(dim=0) == 0).float().mean()),
            "held_by_largest_tenth": float(mean[: len(mean) // 10].sum() / mean.sum()),
        }


if __name__ == "__main__":
    studied.main(__file__, __doc__, activity_rows)
