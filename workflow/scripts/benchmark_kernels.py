from keepset.job import job
from keepset.steps import benchmark

with job(snakemake.log[0], snakemake.threads):
    benchmark.benchmark_shapes(
        snakemake.params.study,
        snakemake.params.settings,
        snakemake.params.device,
        snakemake.output[0],
    )
