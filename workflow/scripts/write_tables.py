from pathlib import Path

from keepset.job import job
from keepset.steps import publish

with job(snakemake.log[0], snakemake.threads):
    publish.write_tables(
        dict(snakemake.input.items()),
        Path(snakemake.output.csv[0]).parent,
        snakemake.params.confidence,
    )
