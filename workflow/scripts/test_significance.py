from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import significance

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    significance.test_significance(
        list(snakemake.input.perplexity),
        list(snakemake.input.capability),
        snakemake.params.statistics,
        snakemake.params.seed,
        dict(snakemake.output.items()),
    )
