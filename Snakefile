# keepset: which parts of a language model can be left out, chosen how, and for how long?
#
#   snakemake --cores 1                  the whole study of config.yaml
#   snakemake --cores 1 figures          one stage: models, download, activations, perplexity, correlations,
#                                        capability, tables, figures
#   snakemake --cores 1 --config only=NAME   one model
#   snakemake --cores 2 train_specimens      train the specimens anew; takes hours

from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/activations.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/states.smk"
include: "workflow/rules/statistics.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/figures.smk"


report: "workflow/report/workflow.rst"


localrules:
    all,
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
    train_specimens,


rule all:
    default_target: True
    input:
        rules.figures.input,
        rules.tables.input,
        rules.states.input,
