from keepset.job import job
from keepset.steps import prepare

with job(snakemake.log[0], snakemake.threads):
    prepare.tokenize_corpus(
        snakemake.wildcards.corpus,
        snakemake.input.corpus,
        snakemake.input.model,
        snakemake.params.lengths,
        snakemake.params.evaluation_tokens,
        snakemake.output[0],
    )
