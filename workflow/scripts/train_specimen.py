from pathlib import Path

from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import training

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    training.train_specimen(
        snakemake.wildcards.specimen,
        snakemake.params.training,
        Path(snakemake.input.tokenizer).parent,
        snakemake.params.device,
        snakemake.params.dtype,
        snakemake.output.model,
    )
