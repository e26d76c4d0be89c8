from keepset.job import job
from keepset.steps import tables

with job(snakemake.log[0], snakemake.threads):
    tables.join_tables(list(snakemake.input), snakemake.output[0])
