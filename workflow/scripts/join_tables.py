from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import tables

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    tables.join_tables(list(snakemake.input), snakemake.output[0])
