from keepset.job import job
from keepset.steps import benchmark

with job(snakemake.log[0], snakemake.threads):
    benchmark.join_benchmarks(list(snakemake.input), snakemake.output.table, snakemake.output.csv)
