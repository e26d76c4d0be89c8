from keepset.job import job
from keepset.steps import texts

with job(snakemake.log[0], snakemake.threads):
    texts.prepare_corpus(
        snakemake.wildcards.corpus,
        snakemake.params.corpus,
        snakemake.params.seed,
        snakemake.output[0],
    )
