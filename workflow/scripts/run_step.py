"""Runs the step that a rule's parameters name: `given` in workflow/rules/common.smk."""

from keepset.run.step import run_step

run_step(snakemake)
