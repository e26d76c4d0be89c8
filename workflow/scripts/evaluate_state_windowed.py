from keepset.run.job import job
from keepset.run.record import recording
from keepset.settings import StateDial
from keepset.settings.grid import state_windowed_rules
from keepset.steps import states
from keepset.steps.common import Run

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    settings = snakemake.params.settings
    states.evaluate_state(
        snakemake.input.model,
        snakemake.input.blocks,
        None,
        Run(**snakemake.params.run),
        state_windowed_rules(
            StateDial(**settings["dial"]), snakemake.wildcards.choice, settings["seeds"]
        ),
        settings,
        snakemake.params.identity,
        snakemake.output[0],
    )
