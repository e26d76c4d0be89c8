# The checked configuration, and the functions that rules take their parameters from.
# Inputs: config.yaml. Outputs: none.

import os
import re
import shlex
import sys
from functools import cache
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

from keepset import plan, settings
from keepset.plan import sizes
from keepset.settings import steps
from keepset.run.alone import Presence
from keepset.errors import KeepsetError
from keepset.run.provenance import code_hash

# If no other Snakemake runs in this folder, a killed one has left the lock.
PRESENCE = Presence(".snakemake") if workflow.is_main_process else None
if PRESENCE and PRESENCE.alone:
    for LOCK in Path(".snakemake/locks").glob("*.lock"):
        LOCK.unlink()

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
DEVICE = plan.device_kind(CONFIG)
GPU = int(DEVICE == "cuda")


def memory(megabytes):
    """`mem_mb` of a rule: twice as much at every further attempt, after an out-of-memory kill."""
    return lambda wildcards, attempt: megabytes * 2 ** (attempt - 1)


@cache
def planned(rule, names):
    """What `keepset plan` expects of a job; zeros where its model's size is not known."""
    job = plan.Job(rule, dict(names))
    known = sizes.known_size(CONFIG, job.model, Path(RESULTS))
    return plan.resources(CONFIG, job, known and known.size, DEVICE)


def bill(rule, mem_mb, runtime, gpu=GPU):
    """The resources of rules that run a model, as expected, and never less than is given.

    `gpu_mb` is for those who share one GPU among jobs: `--resources gpu_mb=80000`.
    """

    def expected(wildcards, key):
        return planned(rule, tuple(wildcards.items()))[key]

    def megabytes(wildcards, attempt):
        return max(mem_mb, expected(wildcards, "mem_mb")) * 2 ** (attempt - 1)

    def minutes(wildcards):
        return max(runtime, expected(wildcards, "runtime"))

    def on_gpu(wildcards):
        return expected(wildcards, "gpu_mb")

    return {"mem_mb": megabytes, "runtime": minutes, "gpu": gpu, "gpu_mb": on_gpu}


wildcard_constraints:
    model="|".join(map(re.escape, CONFIG.all_models())),
    corpus="|".join(map(re.escape, CORPORA)),
    task="|".join(map(re.escape, TASKS)) or "no-task",
    choice="oracle|causal",


def run_settings(wildcards):
    """How a model is run: device, dtype, implementations, tokens per forward pass."""
    return steps.run_settings(CONFIG, wildcards.model)


def identity(wildcards):
    """The leading columns of a result table."""
    return steps.identity(CONFIG, dict(wildcards.items()))


def grid(part):
    """One part of the grid of the wildcard's corpus, as plain data."""
    return lambda wildcards: getattr(
        CONFIG.corpus_grid(wildcards.corpus), part
    ).model_dump()


def gradients(wildcards):
    """Whether the corpus's activation cache holds gradients."""
    return CONFIG.needs_gradients(wildcards.corpus)


def per_corpus(name, kind=None):
    """`name` for every model and corpus of this run, or for those whose `kind` of site is studied."""
    return [
        f"{RESULTS}/{model}/{corpus}/{name}"
        for model in MODELS
        for corpus in CORPORA
        if CONFIG.covers(model, corpus)
        and (kind is None or CONFIG.studies(model, kind, corpus))
    ]


def perplexity_parts(wildcards):
    """The tables of one model and corpus, one per method."""
    model, corpus = wildcards.model, wildcards.corpus
    parts = steps.perplexity_parts(CONFIG, model, corpus)
    return [f"{RESULTS}/{model}/{corpus}/{part}.parquet" for part in parts]


def correlation_parts():
    """The correlations of every model and corpus, by kind of site."""
    return [
        *per_corpus("correlation.parquet", "ffn"),
        *per_corpus("correlation-state.parquet", "state"),
    ]


def chosen_units(wildcards):
    """What the static sets of a task are read from, for the kinds of sites that are studied."""
    corpus = CONFIG.capability.corpus
    folder = f"{RESULTS}/{wildcards.model}/{corpus}"
    found = {}
    if CONFIG.studies(wildcards.model, "ffn", corpus):
        found["cache"] = f"{folder}/activations.safetensors"
    if CONFIG.studies(wildcards.model, "state", corpus):
        found["sets"] = f"{folder}/state.safetensors"
    return found


def state_settings(*parts):
    """What keep sets of states are chosen by, with `parts` of what is done with them."""
    chosen = steps.state_parts(*parts)
    return lambda wildcards: chosen(CONFIG)
