from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import comparison

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    comparison.compare_settings(
        dict(snakemake.input.items()),
        snakemake.params.statistics,
        snakemake.params.seed,
        dict(snakemake.output.items()),
    )
