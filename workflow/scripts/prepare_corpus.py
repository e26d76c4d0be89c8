from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import texts

with job(snakemake.log[0], snakemake.threads, network=True), recording(snakemake):
    texts.prepare_corpus(
        snakemake.wildcards.corpus,
        snakemake.params.corpus,
        snakemake.params.seed,
        snakemake.output[0],
    )
