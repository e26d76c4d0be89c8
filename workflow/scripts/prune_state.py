from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import states
from keepset.steps.common import Run

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    states.prune_state(
        snakemake.input.model,
        snakemake.input.blocks,
        snakemake.input.sets,
        Run(**snakemake.params.run),
        snakemake.params.settings,
        snakemake.params.identity,
        snakemake.output.folder,
    )
