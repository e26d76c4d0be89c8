from pathlib import Path

from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import publish

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    publish.write_tables(
        dict(snakemake.input.items()),
        Path(snakemake.output.csv[0]).parent,
        snakemake.params.confidence,
    )
