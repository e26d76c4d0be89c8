"""Time of a masked evaluation against a dense one, in one process, on one model.

    python benchmarks/masked_evaluation.py [CHECKPOINT_FOLDER] [--repeats 3] [--threads 1]

Without a folder a random Llama of SmolLM2-135M's shape is timed: time does not depend on the
values. Results are ratios to dense, written to benchmarks/masked_evaluation.csv.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from keepset.calibrate import activations
from keepset.calibrate.sets import RankedSets
from keepset.measure.runner import Runner
from keepset.rules.rule import Rule, describe
from keepset.run.job import job
from keepset.run.provenance import environment
from keepset.sites.ffn import find_ffn_sites

RULES = [
    Rule("magnitude", 0.9, 1),
    Rule("impact", 0.9, 1),
    Rule("random", 0.9, 1),
    Rule("magnitude", 0.5, 1),
    Rule("magnitude", 0.98, 1),
    Rule("magnitude", 0.9, 8),
    Rule("magnitude", 0.9, 64),
    Rule("magnitude", 0.9, "sequence"),
    Rule("magnitude", 0.9, 1, "causal"),
    Rule("magnitude", 0.9, 64, "causal"),
    Rule("magnitude", 0.9, "corpus"),
]


def network(folder: str | None) -> torch.nn.Module:
    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
    )


def timed(runner: Runner, blocks: torch.Tensor, rule: Rule | None, lead_in: torch.Tensor) -> float:
    start = time.perf_counter()
    runner.block_nll(blocks, rule, lead_in)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    here = Path(__file__).parent
    with job(here / "masked_evaluation.log", arguments.threads):
        model = network(arguments.folder).eval().requires_grad_(False)
        ids = torch.randint(4, 40_000, (17, 128), generator=torch.Generator().manual_seed(0))
        lead_in, blocks = ids[:-1], ids[1:]
        sites = find_ffn_sites(model)
        moments = activations.collect_moments(
            model, sites, lead_in[:1], gradients=False, batch_tokens=128
        )
        runner = Runner(model, sites, keep_sets=RankedSets(moments))
        timed(runner, blocks, None, lead_in)
        rows = []
        for rule in RULES:
            # Dense and masked take turns, so that a busy machine slows both.
            pairs = [
                (timed(runner, blocks, None, lead_in), timed(runner, blocks, rule, lead_in))
                for _ in range(arguments.repeats)
            ]
            ratios = [masked / dense for dense, masked in pairs]
            rows.append(
                {
                    "rule": describe(rule),
                    "ratio_median": statistics.median(ratios),
                    "ratio_min": min(ratios),
                    "ratio_max": max(ratios),
                    "dense_s": statistics.median(dense for dense, _ in pairs),
                    "tokens": blocks.numel(),
                    "threads": arguments.threads,
                    "device": "cpu",
                    "torch": environment()["packages"]["torch"],
                }
            )
            print(f"{rows[-1]['rule']}: {rows[-1]['ratio_median']:.3f} x dense")
        table = pd.DataFrame(rows)
        table.to_csv(here / "masked_evaluation.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
