from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import evaluation
from keepset.steps.common import Run

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    evaluation.evaluate_capability(
        snakemake.input.model,
        snakemake.input.passages,
        snakemake.input.blocks,
        {name: path for name, path in snakemake.input.items() if name in ("cache", "sets")},
        Run(**snakemake.params.run),
        snakemake.params.settings,
        snakemake.params.identity,
        snakemake.output[0],
    )
