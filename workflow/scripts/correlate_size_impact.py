from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import correlation
from keepset.steps.common import Run

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    correlation.correlate_size_impact(
        snakemake.input.model,
        snakemake.input.blocks,
        snakemake.input.cache,
        Run(**snakemake.params.run),
        snakemake.params.settings,
        snakemake.params.identity,
        snakemake.output[0],
    )
