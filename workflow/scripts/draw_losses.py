from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import drawing

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    drawing.draw_losses(list(snakemake.input), snakemake.output.png)
