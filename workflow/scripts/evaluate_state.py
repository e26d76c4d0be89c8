from keepset.run.job import job
from keepset.run.record import recording
from keepset.settings import StateStaticGrid
from keepset.settings.grid import state_static_rules
from keepset.steps import states
from keepset.steps.common import Run

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    settings = snakemake.params.settings
    states.evaluate_state(
        snakemake.input.model,
        snakemake.input.blocks,
        snakemake.input.sets,
        Run(**snakemake.params.run),
        state_static_rules(StateStaticGrid(**settings["static"]), settings["seeds"]),
        settings,
        snakemake.params.identity,
        snakemake.output[0],
    )
