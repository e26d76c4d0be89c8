from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import benchmark

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    benchmark.benchmark_shapes(
        snakemake.params.study,
        snakemake.params.settings,
        snakemake.params.device,
        snakemake.params.kernels,
        snakemake.output[0],
    )
