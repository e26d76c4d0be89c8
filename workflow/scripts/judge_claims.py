from keepset.run.job import job
from keepset.run.record import recording
from keepset.steps import claims

TABLES = ("models", "perplexity", "capability", "correlation", "channels", "memory")

with job(snakemake.log[0], snakemake.threads), recording(snakemake):
    claims.judge_claims(
        {name: list(snakemake.input.get(name, [])) for name in TABLES},
        snakemake.params.settings,
        dict(snakemake.output.items()),
    )
