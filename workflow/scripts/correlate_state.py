from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import states

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    states.correlate_state(
        snakemake.input.channels,
        snakemake.params.statistics,
        snakemake.params.seed,
        snakemake.params.identity,
        snakemake.output[0],
    )
