from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import prepare

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    prepare.tokenize_corpus(
        snakemake.wildcards.corpus,
        snakemake.input.corpus,
        snakemake.input.model,
        snakemake.params.lengths,
        snakemake.params.evaluation_tokens,
        snakemake.output[0],
    )
