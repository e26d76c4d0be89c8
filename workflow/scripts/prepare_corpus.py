from keepset.job import job
from keepset.steps import prepare

with job(snakemake.log[0], snakemake.threads):
    prepare.prepare_corpus(
        snakemake.wildcards.corpus,
        snakemake.params.corpus,
        snakemake.params.seed,
        snakemake.output[0],
    )
