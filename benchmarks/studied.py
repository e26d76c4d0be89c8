"""What the scripts that look into a finished study share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from keepset import models, text
from keepset.files import store
from keepset.hold.inputs import watching
from keepset.measure.runner import Runner
from keepset.sites.ffn import find_ffn_sites

RowsOf = Callable[[Runner, text.Blocks], Iterator[dict[str, object]]]
"""Rows of one model on one corpus."""


def magnitudes(runner: Runner, blocks: Tensor) -> dict[str, Tensor]:
    """|h| of every site, (tokens, n_units)."""
    parts: dict[str, list[Tensor]] = {site.key: [] for site in runner.sites}
    with watching(runner.model, runner.sites, lambda site, h: parts[site.key].append(h.abs())):
        runner.block_nll(blocks)
    return {key: torch.cat([h.flatten(0, -2) for h in batches]) for key, batches in parts.items()}


def main(script: str, doc: str, rows_of: RowsOf) -> None:
    """Measure the models that the command line names, and write the table beside the script."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("results", type=Path, help="results/<study>")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--corpus", default="wiki")
    asked = parser.parse_args()
    rows = [
        {"model": name, "corpus": asked.corpus, **row}
        for name in asked.models
        for row in rows_of(*_opened(asked.results, name, asked.corpus))
    ]
    table = pd.DataFrame(rows)
    with store.replacing(Path(script).with_suffix(".csv")) as temporary:
        table.round(4).to_csv(temporary, index=False, lineterminator="\n")
    print(table.round(3).to_string(index=False))


def _opened(results: Path, name: str, corpus: str) -> tuple[Runner, text.Blocks]:
    model, _ = models.load(
        store.read_json(results / name / "model.json"), torch.device("cpu"), torch.float32
    )
    blocks = text.load_blocks(results / name / corpus / "blocks.safetensors")
    return Runner(model.eval(), find_ffn_sites(model)), blocks
