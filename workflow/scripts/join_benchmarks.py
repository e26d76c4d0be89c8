from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import benchmark

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    benchmark.join_benchmarks(list(snakemake.input), snakemake.output.table, snakemake.output.csv)
