from keepset.run.job import job
from keepset.run.record import recording
from keepset.settings import DynamicGrid
from keepset.settings.grid import dynamic_rules
from keepset.steps import evaluation
from keepset.steps.common import Run

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    evaluation.evaluate_rules(
        snakemake.input.model,
        snakemake.input.blocks,
        None,
        Run(**snakemake.params.run),
        dynamic_rules(DynamicGrid(**snakemake.params.grid), snakemake.params.seeds),
        False,
        snakemake.params.identity,
        snakemake.output[0],
    )
