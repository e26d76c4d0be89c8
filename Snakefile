# keepset: which parts of a language model can be left out, chosen how, and for how long?
#
#   snakemake --cores 1                  the whole study of config.yaml
#   snakemake --cores 1 figures          one stage: models, download, activations, perplexity, correlations,
#                                        capability, tables, figures, claims
#   snakemake --cores 1 --config only=NAME   one model
#   snakemake --cores 2 train_specimens      train the specimens again; an hour or two
#   snakemake --cores 1 benchmarks           measure the speed of every keep rule

import os

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.0")


# A file given with --configfile takes the place of config.yaml: two studies do not mix.
if not workflow.overwrite_configfiles:
    if not os.path.exists("config.yaml"):
        raise WorkflowError(
            f"{os.getcwd()} has no config.yaml: give a study with --configfile, or copy"
            f" {workflow.basedir}/config.yaml into this folder"
        )

    configfile: "config.yaml"


# A rule that begins with `use rule` states only what differs from the rule that it names.
include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/activations.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/experts.smk"
include: "workflow/rules/states.smk"
include: "workflow/rules/statistics.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/slim.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/benchmark.smk"


report: "workflow/report/workflow.rst"


# Targets do nothing; the prepare rules may touch the network. On a cluster both run on the node that
# Snakemake runs on.
localrules:
    all,
    prepare_model,
    prepare_corpus,
    prepare_task,
    prepare_training,
    models,
    download,
    activations,
    correlations,
    perplexity,
    states,
    pruned,
    capability,
    tables,
    figures,
    claims,
    train_specimens,
    benchmarks,
    slim,


rule all:
    default_target: True
    input:
        rules.figures.input,
        rules.tables.input,
        rules.states.input,
        rules.claims.input,
