"""Decoding under recipes on a CPU: what kernels gain, and what leaving inputs out gains beside it.

    python benchmarks/recipe_decoding.py results/embedded/smollm2-135m/checkpoint --dtype float32

Three copies of a checkpoint decode the same prompt and take turns, token by token, on one thread:
dense by transformers and torch, dense by the kernels (an empty recipe), and under a recipe of equal
shares. Seconds are CPU time, the median over tokens. `allowed` is what the weights that are not
read would give if nothing but reading weights took time. Written to benchmarks/recipe_decoding.csv.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from keepset import Recipe, Rule, load, sparse_decoding
from keepset.decode.recipe import linear_sites
from keepset.kernels import clock
from keepset.slim.savings import site_bytes

SHARES = {
    "all seven": ("magnitude", ("input", "ffn"), (0.25, 0.4, 0.5)),
    "q, k, v and o": ("magnitude", ("q_proj", "o_proj"), (0.4,)),
    "down": ("magnitude", ("ffn",), (0.5, 0.7, 0.9)),
    "up and down, by the gate": ("gate", ("ffn",), (0.3, 0.5)),
}
"""Name -> score, kinds or last names of sites, and the shares that they leave out."""


class Decoder:
    """Decodes greedily, and takes the time of every token."""

    def __init__(self, model: Any, ids: torch.Tensor) -> None:
        self._model, self._ids, self._cache = model, ids, None
        self.seconds: list[float] = []

    def advance(self) -> None:
        """Read what is new, and predict the next token."""
        start = clock.seconds()
        out = self._model(
            input_ids=self._ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._ids, self._cache = out.logits[:, -1:].argmax(dim=-1), out.past_key_values
        self.seconds.append(clock.seconds() - start)

    def median(self) -> float:
        """Seconds of a decoded token."""
        return statistics.median(self.seconds[1:])


def main() -> None:
    """Time every share of `SHARES`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--prompt", default="The history of the river begins in the mountains,")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(arguments.checkpoint, dtype=arguments.dtype)
    ids = tokenizer(arguments.prompt, return_tensors="pt").input_ids
    by_kernels, sparse = copy.deepcopy(model), copy.deepcopy(model)
    sites = linear_sites(sparse)
    all_weights = sum(m.weight.nbytes for m in model.modules() if isinstance(m, nn.Linear))
    rows = []
    for name, (score, ends, shares) in SHARES.items():
        chosen = [site for site in sites if site.kind in ends or site.key.endswith(ends)]
        read = sum(site_bytes(site, score) for site in chosen)
        for share in shares:
            rules = {site.key: Rule(score, share, 1, site=site.kind) for site in chosen}
            with (
                sparse_decoding(by_kernels, Recipe({})),
                sparse_decoding(sparse, Recipe(rules)),
                torch.inference_mode(),
            ):
                for _ in range(2):  # the first warms up
                    decoders = [Decoder(one, ids) for one in (model, by_kernels, sparse)]
                    for _ in range(arguments.tokens):
                        for decoder in decoders:
                            decoder.advance()
            plain, dense, left_out = (decoder.median() for decoder in decoders)
            row = {
                "dtype": arguments.dtype,
                "sites": name,
                "share": share,
                "torch_ms": 1e3 * plain,
                "kernels_ms": 1e3 * dense,
                "recipe_ms": 1e3 * left_out,
                "over_torch": plain / left_out,
                "over_kernels": dense / left_out,
                "allowed": 1 / (1 - share * read / all_weights),
            }
            print({key: round(v, 2) if isinstance(v, float) else v for key, v in row.items()})
            rows.append(row)
    path = Path(__file__).with_suffix(".csv")
    table = pd.DataFrame(rows).round(3)
    if path.exists():
        before = pd.read_csv(path)
        table = pd.concat([before[before["dtype"] != arguments.dtype], table])
    table.to_csv(path, index=False)


if __name__ == "__main__":
    main()
