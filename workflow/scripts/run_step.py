"""Runs the step that a rule's parameters name: `given` in workflow/rules/common.smk."""

from keepset.run.start import start

start(snakemake)
