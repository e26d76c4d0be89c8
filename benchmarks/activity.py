"""How activity spreads over the units of an FFN: what a static set can and cannot hold.

    python benchmarks/activity.py results/embedded relu relu-l1 swiglu --corpus wiki

Per layer, on evaluation text: units per token that are not exactly zero, the share of units that
never are, and the share of the sum of |h| that the tenth of the units with the largest mean |h|
holds. Written to benchmarks/activity.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from layer_budgets import magnitudes

from keepset import models, store, text
from keepset.runner import Runner
from keepset.sites import find_sites


def measure(results: Path, name: str, corpus: str) -> Iterator[dict[str, object]]:
    """One row per layer."""
    model, _ = models.load(
        store.read_json(results / name / "model.json"), torch.device("cpu"), torch.float32
    )
    runner = Runner(model.eval(), find_sites(model))
    blocks = text.load_blocks(results / name / corpus / "blocks.safetensors")
    sizes = magnitudes(runner, blocks.evaluation)
    for site in runner.sites:
        size = sizes[site.key]
        mean = size.mean(dim=0).sort(descending=True).values
        yield {
            "model": name,
            "corpus": corpus,
            "layer": site.name,
            "units": size.shape[1],
            "active_per_token": float((size > 0).sum(dim=1).float().mean()),
            "never_active": float((size.amax(dim=0) == 0).float().mean()),
            "held_by_largest_tenth": float(mean[: len(mean) // 10].sum() / mean.sum()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, help="results/<study>")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--corpus", default="wiki")
    asked = parser.parse_args()
    table = pd.DataFrame(
        row for name in asked.models for row in measure(asked.results, name, asked.corpus)
    )
    with store.replacing(Path(__file__).with_suffix(".csv")) as temporary:
        table.round(4).to_csv(temporary, index=False, lineterminator="\n")
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
