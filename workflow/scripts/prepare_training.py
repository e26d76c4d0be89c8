from pathlib import Path

from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import training

with job(snakemake.log[0], snakemake.threads, network=True), recording(snakemake):
    training.prepare_training(
        list(snakemake.input),
        snakemake.params.training,
        Path(snakemake.output.tokenizer).parent,
    )
