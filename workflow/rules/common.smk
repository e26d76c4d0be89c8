# The checked configuration, and the functions that rules take their parameters from.
# Inputs: config.yaml. Outputs: none.

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Scripts find the library beside this Snakefile, also in a fresh conda environment.
SOURCE = str(Path(workflow.basedir) / "src")
sys.path.insert(0, SOURCE)
shell.prefix(
    "set -euo pipefail; export PYTHONPATH="
    + shlex.quote(SOURCE)
    + "${{PYTHONPATH:+:$PYTHONPATH}}; "
)

# Progress bars of libraries are for people who watch; a log keeps one line per job.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")

from keepset import settings
from keepset.errors import KeepsetError
from keepset.provenance import code_hash

try:
    CONFIG = settings.from_mapping(config)
    MODELS = list(CONFIG.active_models())
except KeepsetError as error:
    raise WorkflowError(str(error)) from None

# The report's captions read the configuration, defaults included.
config.update(CONFIG.model_dump(mode="json"))

RESULTS = f"results/{CONFIG.study}"
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
CORPORA = list(CONFIG.corpora)
TASKS = list(CONFIG.tasks)
# `auto` asks a scheduler for a GPU only where one can be seen; a cluster's users say `cuda`.
GPU = int(
    CONFIG.device.startswith("cuda")
    or (CONFIG.device == "auto" and shutil.which("nvidia-smi") is not None)
)


wildcard_constraints:
    model="|".join(map(re.escape, CONFIG.all_models())),
    corpus="|".join(map(re.escape, CORPORA)),
    task="|".join(map(re.escape, TASKS)) or "no-task",
    choice="oracle|causal",


def run_settings(wildcards):
    """How a model is run: device, dtype, tokens per forward pass."""
    model = CONFIG.all_models()[wildcards.model]
    return {
        "device": CONFIG.device,
        "dtype": model.dtype or CONFIG.dtype,
        "batch_tokens": CONFIG.text.batch_tokens,
    }


def identity(wildcards):
    """The leading columns of a result table."""
    columns = {
        "study": CONFIG.study,
        "model": wildcards.model,
        "origin": CONFIG.all_models()[wildcards.model].origin,
    }
    for name in ("corpus", "task"):
        if name in wildcards.keys():
            columns[name] = wildcards[name]
    return columns


def grid(part):
    """One part of the grid of the wildcard's corpus, as plain data."""
    return lambda wildcards: getattr(
        CONFIG.corpus_grid(wildcards.corpus), part
    ).model_dump()


def gradients(wildcards):
    """Whether the corpus's activation cache holds gradients."""
    return CONFIG.needs_gradients(wildcards.corpus)


def per_corpus(name):
    """`name` for every model and corpus of this run."""
    return expand(
        f"{RESULTS}/{{model}}/{{corpus}}/{name}", model=MODELS, corpus=CORPORA
    )


def perplexity_parts(wildcards):
    """The tables of one model and corpus, one per method."""
    choices = CONFIG.corpus_grid(wildcards.corpus).windowed.choices
    windowed = [f"windowed-{choice}" for choice in choices]
    return expand(
        f"{RESULTS}/{wildcards.model}/{wildcards.corpus}/{{part}}.parquet",
        part=["dense", "static", "dynamic", *windowed],
    )


# The models that were trained with a penalty on |h|.
L1_MODELS = [
    name
    for name, specimen in (CONFIG.training.specimens.items() if CONFIG.training else ())
    if specimen.l1 > 0 and name in MODELS
]
