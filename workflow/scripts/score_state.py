from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import states
from keepset.steps.common import Run

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    states.score_state(
        snakemake.input.model,
        snakemake.input.blocks,
        Run(**snakemake.params.run),
        snakemake.params.settings,
        snakemake.params.identity,
        {name: snakemake.output[name] for name in ("sets", "channels", "memory")},
    )
