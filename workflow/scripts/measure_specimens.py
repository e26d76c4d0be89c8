from pathlib import Path

from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import shipping

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    shipping.measure_specimens(
        dict(zip(snakemake.params.names, snakemake.input.models, strict=True)),
        Path(snakemake.input.text).parent,
        list(snakemake.input.corpora),
        snakemake.params.training,
        snakemake.output[0],
    )
