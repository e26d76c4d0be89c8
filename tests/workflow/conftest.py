"""A whole study that runs in seconds: two tiny random models, a tiny corpus, a task."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORDS = ("river", "stone", "winter", "market", "garden", "letter", "harbour", "summer", "doctor")


def prose(seed: int, paragraphs: int) -> str:
    """Made-up sentences whose words recur, so that passages with a told last word exist."""
    rng = np.random.default_rng(seed)
    return "\n\n".join(
        " ".join(
            " ".join(rng.choice(WORDS, 7)).capitalize() + "."
            for _ in range(int(rng.integers(5, 9)))
        )
        for _ in range(paragraphs)
    )


def write_corpus(folder: Path) -> None:
    (folder / "letters").mkdir(parents=True)
    for part in range(12):
        (folder / f"letters/{part:02d}.txt").write_text(prose(part, 4) + "\n")


def losses() -> pd.DataFrame:
    """A loss curve, as a specimen is shipped with."""
    curve = pd.DataFrame({"specimen": "relu", "step": [10, 20] * 2, "tokens": [640, 1280] * 2})
    curve["split"] = ["training", "training", "heldout", "heldout"]
    names = ("text_nll", "answer_nll", "answer_accuracy", "zeros_mean", "zeros_min")
    return curve.assign(**dict.fromkeys(names, 0.5))


def study(folder: Path) -> dict[str, Any]:
    """The configuration of the tiny study, with its data under `folder`."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    sparsities = [0.5, 0.9]
    return {
        **config,
        "study": "tiny",
        "device": "cpu",
        "dtype": "float32",
        "models": {"llama": {"path": str(folder / "models/llama"), "sites": ["ffn"]}},
        "specimens": str(folder / "specimens"),
        "corpora": {"letters": {"text": {"path": str(folder / "letters/*.txt")}, "ablation": True}},
        "training": {
            "corpora": {"letters": 1},
            "vocabulary": 640,
            "sequence": 32,
            "batch": 2,
            "steps": 40,
            "warmup": 2,
            "recall": {"words": 4},
            "log_every": 10,
            "checkpoint_every": 10,
            "specimens": {
                name: {
                    "model_type": "opt",
                    "config": {
                        "hidden_size": 16,
                        "word_embed_proj_dim": 16,
                        "num_hidden_layers": 2,
                        "num_attention_heads": 2,
                        "ffn_dim": 32,
                        "max_position_embeddings": 256,
                    },
                    "l1": l1,
                }
                for name, l1 in (("plain", 0.0), ("penalised", 0.01))
            },
        },
        "text": {
            "block": 32,
            "calibration_tokens": 128,
            "evaluation_tokens": 128,
            "specimen_evaluation_tokens": 160,
            "batch_tokens": 64,
        },
        "tasks": {
            "last-word": {
                "kind": "built",
                "corpora": ["letters"],
                "items": 12,
                "min_words": 10,
                "max_words": 30,
            },
            "recall": {
                "kind": "recall",
                "corpora": ["letters"],
                "items": 8,
                "facts": [1, 2],
                "distances": [0, 6],
            },
        },
        "state": {
            "static": {
                "scores": ["ghost", "magnitude", "taylor", "random"],
                "sparsities": sparsities,
            },
            "windowed": {
                "scores": ["impact"],
                "sparsities": [0.5],
                "windows": [1, 4, "sequence"],
                "choices": ["oracle", "causal"],
                "access": ["read", "write"],
            },
            "capability": {"scores": ["ghost"], "sparsities": [0.9]},
            "lengths": [1, 2],
            "prune": {"score": "ghost", "sparsity": 0.5},
        },
        "input": {
            "static": {"scores": ["magnitude"], "sparsities": [0.5]},
            "dynamic": {"scores": ["magnitude"], "sparsities": [0.5]},
            "windowed": {
                "scores": ["magnitude"],
                "sparsities": [0.5],
                "windows": [1, 4],
                "choices": ["oracle"],
            },
        },
        "expert": {
            "static": {"scores": ["impact"], "sparsities": sparsities},
            "windowed": {
                "scores": ["magnitude"],
                "sparsities": sparsities,
                "windows": [1, 4],
                "choices": ["oracle"],
            },
            "prune": {"score": "impact", "sparsity": 0.5},
        },
        "grid": {
            "static": {"scores": config["grid"]["static"]["scores"], "sparsities": sparsities},
            "dynamic": {"scores": ["magnitude"], "sparsities": sparsities},
            "windowed": {
                "scores": ["magnitude"],
                "sparsities": sparsities,
                "windows": [1, 4, "sequence"],
                "choices": ["oracle", "causal"],
            },
        },
        "random_seeds": 2,
        "capability": {"score": "magnitude", "sparsity": 0.9, "window": 8, "corpus": "letters"},
        "ablation": {"units": 16, "tokens": 32},
        "statistics": {"rounding_draws": 2},
        "benchmark": {
            "shapes": {"tiny": {"d_model": 24, "n_units": 40, "gated": True}},
            "block_dtypes": ["float32", "bfloat16"],
            "blocks": {1: [0.5, 0.9], 2: [0.9]},
            "seconds": 0.0,
            "corpus": "letters",
            "sparsities": sparsities,
            "windows": [1, 4],
            "tokens": 4,
        },
    }


def small(config: dict[str, Any]) -> dict[str, Any]:
    """The tiny study with one model and few settings, for tests that run it more than once."""
    return {
        **config,
        "specimens": None,
        "training": None,
        "tasks": {},
        "corpora": {"letters": {"text": config["corpora"]["letters"]["text"]}},
        "grid": {
            "static": {"scores": ["magnitude"], "sparsities": [0.5]},
            "dynamic": {"scores": ["magnitude"], "sparsities": [0.5]},
            "windowed": {
                "scores": ["magnitude"],
                "sparsities": [0.5],
                "windows": [1, 4],
                "choices": ["oracle"],
            },
        },
    }


def counted(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Jobs by rule, as a dry run lists them."""
    rows = [line.split() for line in (done.stdout + done.stderr).splitlines()]
    table = {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
    # Beside the table there are lines such as "jobid: 0".
    return {
        rule: count
        for rule, count in table.items()
        if rule.isidentifier() and rule not in ("total", "all")
    }


class Study:
    """A working directory with the workflow's files linked in and a configuration of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = study(folder / "data")
        self.environment: dict[str, str] = {}

    def write(self) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`snakemake --cores 2 ...` on this study, in a process group of its own."""
        self.write()
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            **self.environment,
        }
        return subprocess.Popen(
            ["snakemake", "--cores", "2", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The same, waited for."""
        process = self.start(*arguments)
        stdout, stderr = process.communicate()
        done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
        if check and done.returncode:
            raise AssertionError(f"snakemake failed:\n{stdout}\n{stderr}")
        return done

    def planned(self, *arguments: str) -> set[str]:
        """The rules that a dry run would execute."""
        return set(counted(self.run(*arguments, "--dry-run", "--quiet", "rules")))

    def results(self) -> Path:
        return self.folder / "results/tiny"


def lay_out(folder: Path, checkpoint: Path) -> Study:
    """The workflow's files, a corpus and one model; nothing is run."""
    for name in ("Snakefile", "workflow", "src", "envs", "profiles"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    write_corpus(folder / "data")
    shutil.copytree(checkpoint, folder / "data/models/llama")
    return Study(folder)


@pytest.fixture(scope="module")
def small_study(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Study:
    """The small study, not run."""
    study = lay_out(tmp_path_factory.mktemp("small"), tiny_checkpoint)
    study.config = small(study.config)
    return study


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    tiny_model: Callable[..., Any],
    tiny_tokenizer: Any,
) -> Study:
    """The tiny study, run to its end. Tests that change it put it back."""
    study = lay_out(tmp_path_factory.mktemp("study"), tiny_checkpoint)
    hybrid = {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"]}
    hybrid |= {"num_mem_blocks": 1}
    for name, model in (("relu", tiny_model("opt")), ("hybrid", tiny_model("zamba2", **hybrid))):
        model.save_pretrained(study.folder / f"data/specimens/{name}")
        tiny_tokenizer.save_pretrained(study.folder / f"data/specimens/{name}")
    losses().to_parquet(study.folder / "data/specimens/relu/losses.parquet")
    study.run()
    return study
