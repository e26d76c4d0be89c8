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
from keepset.rules.kinds import evaluations
from keepset.settings import outputs, reading
from keepset.settings.figures import FIGURES, drawn
from keepset.settings.steps import all_steps
from keepset.run.alone import Presence
from keepset.errors import KeepsetError
from keepset.run.provenance import code_hash
from keepset.run.warm import ADDRESS, WarmStart, can_fork

# If no other Snakemake runs in this folder, a killed one has left the lock.
PRESENCE = Presence(".snakemake") if workflow.is_main_process else None
if PRESENCE and PRESENCE.alone:
    for LOCK in Path(".snakemake/locks").glob("*.lock"):
        LOCK.unlink()

try:
    # Snakemake has read them, but it takes a key such as `no` or `1_3` for something else.
    for FILE in workflow.configfiles:
        reading.read(FILE)
    CONFIG = settings.from_mapping(config)
    MODELS = list(CONFIG.active_models())
except KeepsetError as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"results/{CONFIG.study}"
LOGS = f"{RESULTS}/logs"
CORPORA = list(CONFIG.corpora)
TASKS = list(CONFIG.tasks)
HARNESS = "|".join(map(re.escape, CONFIG.tasks_of("harness"))) or "no-task"
OTHER_TASKS = (
    "|".join(map(re.escape, CONFIG.tasks_of("harness", others=True))) or "no-task"
)
# A model, and the folder of what is made from it and a corpus.
MODEL = f"{RESULTS}/{{model}}/model.json"
FOLDER = f"{RESULTS}/{{model}}/{{corpus}}"
# `auto` asks a scheduler for a GPU only where one can be seen; a cluster's users say `cuda`.
DEVICE = plan.device_kind(CONFIG)
GPU = int(DEVICE == "cuda")
STEPS = all_steps()

# The report's captions read the configuration, defaults included.
config.update(CONFIG.model_dump(mode="json"))


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


def given(rule):
    """The parameters of a rule: the step that it runs, what the step is told, the step's code."""
    step = STEPS[rule]
    parameters = {
        "step": {"run": step.run, "network": step.network, "beside": step.beside},
        "settings": lambda wildcards: step.given(CONFIG, dict(wildcards.items())),
    }
    return parameters | ({"code": code_hash(step.code)} if step.code else {})


WARM_STARTS = []
# A scheduler's job stays within what the scheduler gave it.
if not workflow.is_main_process:
    os.environ.pop(ADDRESS, None)


# Imports are paid once: jobs are forks of a process that has made them.
onstart:
    if workflow.is_main_process and can_fork(DEVICE):
        WARM_STARTS.append(WarmStart())


onsuccess:
    for WARM_START in WARM_STARTS:
        WARM_START.stop()


onerror:
    for WARM_START in WARM_STARTS:
        WARM_START.stop()


wildcard_constraints:
    model="|".join(map(re.escape, CONFIG.all_models())),
    corpus="|".join(map(re.escape, CORPORA)),
    task="|".join(map(re.escape, TASKS)) or "no-task",
    choice="oracle|causal",


def results(files):
    """Files of the study, by their paths in its folder."""
    return [f"{RESULTS}/{file}" for file in files]


def per_corpus(name, kind=None):
    """`name` for every model and corpus of this run, or for those whose `kind` of site is studied."""
    return results(outputs.per_corpus(CONFIG, name, kind))


def ledger(file, label):
    """A file of the ledger, with its place in the report."""
    return report(
        f"{RESULTS}/{file}",
        caption="../report/caption.rst",
        category="Claims",
        labels={"claims": label},
    )
