from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import activations
from keepset.steps.common import Run

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    activations.cache_activations(
        snakemake.input.model,
        snakemake.input.blocks,
        Run(**snakemake.params.run),
        snakemake.params.gradients,
        f"{snakemake.wildcards.model} {snakemake.wildcards.corpus} cache_activations",
        snakemake.output[0],
    )
