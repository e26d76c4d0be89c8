from keepset.job import job
from keepset.steps import drawing

with job(snakemake.log[0], snakemake.threads):
    drawing.draw(snakemake.params.figure, list(snakemake.input), snakemake.output.png)
