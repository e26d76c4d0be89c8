from keepset.run.job import job
from keepset.run.record import recording
from keepset.settings import StaticGrid
from keepset.settings.grid import static_rules
from keepset.steps import evaluation
from keepset.steps.common import Run

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    evaluation.evaluate_rules(
        snakemake.input.model,
        snakemake.input.blocks,
        snakemake.input.cache,
        Run(**snakemake.params.run),
        static_rules(StaticGrid(**snakemake.params.grid), snakemake.params.seeds),
        snakemake.params.gradients,
        snakemake.params.identity,
        snakemake.output[0],
    )
