from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import benchmark

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    benchmark.benchmark_model(
        snakemake.input.model,
        snakemake.input.blocks,
        snakemake.input.cache,
        snakemake.params.identity,
        snakemake.params.settings,
        snakemake.params.run,
        snakemake.output[0],
    )
