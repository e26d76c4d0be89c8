from keepset.job import job
from keepset.steps import significance

with job(snakemake.log[0], snakemake.threads):
    significance.test_significance(
        list(snakemake.input.perplexity),
        list(snakemake.input.capability),
        snakemake.params.statistics,
        snakemake.params.seed,
        dict(snakemake.output.items()),
    )
