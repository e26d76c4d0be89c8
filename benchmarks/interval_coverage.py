"""How often the 95% interval of a ratio of perplexities holds the true ratio.

    python benchmarks/interval_coverage.py

Made-up text: documents of one length, or of one to three blocks. What a setting costs differs from
document to document: normal, with long tails (Student's t, 4 degrees of freedom), or skewed
(log-normal). The interval is that of `keepset.analyse.effects.log_ratio`; beside it, a BCa
bootstrap over the same documents. Written to benchmarks/interval_coverage.csv.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from keepset.analyse import effects
from keepset.analyse.stats import Floats

TRUTH, SPREAD, BLOCK = 0.3, 0.1, 255
RUNS = 4000
RESAMPLES = 999

Draw = Callable[[np.random.Generator, int], Floats]

COSTS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "long tails": lambda rng, n: rng.standard_t(4, n) / np.sqrt(2),
    "skewed": lambda rng, n: (rng.lognormal(0, 0.5, n) - np.exp(0.125)) / 0.6,
}
LENGTHS: dict[str, Draw] = {
    "equal": lambda _, n: np.full(n, float(BLOCK)),
    "1 to 3 blocks": lambda rng, n: BLOCK * rng.integers(1, 4, n).astype(np.float64),
}


def covered(rng: np.random.Generator, n: int, cost: Draw, length: Draw) -> tuple[bool, bool]:
    """Whether the t interval and the BCa interval of one made-up text hold the truth."""
    tokens = length(rng, n)
    nats = tokens * (TRUTH + SPREAD * cost(rng, n))
    effect = effects.log_ratio(nats, np.zeros(n), tokens, np.arange(n), 0.95)
    low, high = stats.bootstrap(
        (nats, tokens), lambda x, t, axis: x.sum(axis=axis) / t.sum(axis=axis), paired=True,
        vectorized=True, method="BCa", n_resamples=RESAMPLES, rng=rng,
    ).confidence_interval  # fmt: skip
    return effect.low < TRUTH < effect.high, low < TRUTH < high


def coverage_rows() -> Iterator[dict[str, object]]:
    """One row per number of documents, distribution and lengths."""
    rng = np.random.default_rng(0)
    for n in (8, 16, 32):
        for length, lengths in LENGTHS.items():
            for cost, costs in COSTS.items():
                shares = np.mean([covered(rng, n, costs, lengths) for _ in range(RUNS)], axis=0)
                yield {
                    "documents": n, "cost": cost, "lengths": length,
                    "t": shares[0], "bca": shares[1],
                }  # fmt: skip


if __name__ == "__main__":
    table = pd.DataFrame(coverage_rows())
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.4g")
    print(table.to_string(index=False))
