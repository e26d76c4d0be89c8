from keepset.job import job
from keepset.steps import prepare

with job(snakemake.log[0], snakemake.threads):
    prepare.prepare_task(
        snakemake.wildcards.task,
        snakemake.params.task,
        list(snakemake.input),
        snakemake.params.seed,
        snakemake.output[0],
    )
