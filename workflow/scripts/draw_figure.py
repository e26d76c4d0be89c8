from keepset.job import job
from keepset.steps import drawing

with job(snakemake.log[0], snakemake.threads):
    drawing.draw(snakemake.params.figure, snakemake.input[0], snakemake.output.png)
