from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import evaluation
from keepset.steps.common import Run

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    evaluation.evaluate_rules(
        snakemake.input.model,
        snakemake.input.blocks,
        None,
        Run(**snakemake.params.run),
        [None],
        False,
        snakemake.params.identity,
        snakemake.output[0],
    )
