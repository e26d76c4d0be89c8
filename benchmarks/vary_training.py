"""What does the gap between static and dynamic sets depend on? Specimens trained otherwise.

    snakemake --cores 2 results/embedded/training/sources.json
    python benchmarks/vary_training.py results/embedded swiglu steps=2500
    python benchmarks/vary_training.py results/embedded swiglu hidden_size=64 intermediate_size=176
    python benchmarks/vary_training.py results/embedded relu-l1 l1=1e-3

Trains a specimen with some of its settings changed (of `training`, of the specimen, or of its
architecture's configuration), then measures perplexity over dense with equal shares in all layers.
A row per sparsity is added to benchmarks/vary_training.csv; a training that was interrupted goes
on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM

from keepset import settings, text
from keepset.calibrate import activations
from keepset.calibrate.sets import RankedSets
from keepset.files import store
from keepset.measure.runner import Runner, perplexity
from keepset.rules.rule import Rule
from keepset.run.job import job
from keepset.sites.ffn import find_ffn_sites
from keepset.steps.training import train_specimen

SPARSITIES = (0.8, 0.9, 0.95)
TABLE = Path(__file__).with_suffix(".csv")


def changed(training: Mapping[str, Any], name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The `training` section for one specimen with `changes`.

    Raises:
        SystemExit: a key is neither of the training, nor of the specimen, nor of its architecture.
    """
    specimen = training["specimens"][name]
    specimen = {**specimen, "config": dict(specimen["config"])}
    varied = {**training, "specimens": {name: specimen}}
    for key, value in changes.items():
        places = [place for place in (varied, specimen, specimen["config"]) if key in place]
        if not places:
            raise SystemExit(f"{key}: no setting of the training of {name}")
        for place in places:
            place[key] = value
    return varied


def ratio_rows(folder: Path, blocks: text.Blocks) -> Iterator[dict[str, float]]:
    """Perplexity over dense, dynamic and static, by size."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval().requires_grad_(False)
    sites = find_ffn_sites(model)
    moments = activations.collect_moments(
        model, sites, blocks.calibration, gradients=False, batch_tokens=1024
    )
    runner = Runner(model, sites, keep_sets=RankedSets(moments))
    dense = perplexity(runner, blocks.evaluation)
    for sparsity in SPARSITIES:
        dynamic, static = (
            perplexity(runner, blocks.evaluation, Rule("magnitude", sparsity, window)) / dense
            for window in (1, "corpus")
        )
        ratio = static / dynamic
        yield {
            "sparsity": sparsity, "dense": dense, "dynamic": dynamic, "static": static,
            "static_over_dynamic": ratio,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, help="results/<study>")
    parser.add_argument("specimen")
    parser.add_argument("changes", nargs="*", metavar="key=value")
    parser.add_argument("--config", default="config.yaml")
    parser.add_argument("--corpus", default="wiki")
    asked = parser.parse_args()
    changes = {key: json.loads(value) for key, value in (c.split("=") for c in asked.changes)}
    training = settings.load(asked.config).training
    if training is None or asked.specimen not in training.specimens:
        raise SystemExit(f"{asked.specimen}: not a specimen of {asked.config}")
    wanted = changed(training.model_dump(), asked.specimen, changes)
    data = asked.results / "training"
    name = ",".join([asked.specimen, *asked.changes])
    folder = data / "varied" / name
    tokens = data / "text.safetensors"
    with job(folder / "log", 1):
        train_specimen(asked.specimen, wanted, tokens, "cpu", "auto", folder / "model")
    blocks = text.load_blocks(asked.results / asked.specimen / asked.corpus / "blocks.safetensors")
    head = {"specimen": asked.specimen, "changes": " ".join(asked.changes), "corpus": asked.corpus}
    rows = pd.DataFrame({**head, **row} for row in ratio_rows(folder / "model", blocks))
    table = pd.concat([pd.read_csv(TABLE), rows]) if TABLE.is_file() else rows
    table = table.fillna({"changes": ""}).drop_duplicates(
        ["specimen", "changes", "corpus", "sparsity"], keep="last"
    )
    with store.replacing(TABLE) as temporary:
        table.round(4).to_csv(temporary, index=False, lineterminator="\n")
    print(rows.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
