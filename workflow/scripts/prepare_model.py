from pathlib import Path

from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import prepare

converted = Path(snakemake.output[0]).with_name("checkpoint")
with job(snakemake.log[0], snakemake.threads, network=True), recording(snakemake, [converted]):
    prepare.prepare_model(snakemake.wildcards.model, snakemake.params.source, snakemake.output[0])
