from keepset.job import job
from keepset.steps import prepare

with job(snakemake.log[0], snakemake.threads):
    prepare.prepare_model(snakemake.wildcards.model, snakemake.params.source, snakemake.output[0])
