from keepset.job import job
from keepset.steps import comparison

with job(snakemake.log[0], snakemake.threads):
    comparison.sort_channels(
        list(snakemake.input), snakemake.output.channels, snakemake.output.quadrants
    )
