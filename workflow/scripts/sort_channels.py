from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import comparison

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    comparison.sort_channels(
        list(snakemake.input), snakemake.output.channels, snakemake.output.quadrants
    )
