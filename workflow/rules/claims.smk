# The ledger: every claim of the papers, and its verdict on this study.
# Inputs: every perplexity, capability and correlation table of this run, the runs that differ in the
#         last bit, the ablated units, and what is known of models and corpora. Tables of the
#         recurrent state (channels, memory) are read where they are made.
# Outputs: claims.csv, claims_cases.csv, claims.html, tables/claims.tex,
#          significance/claims.parquet (which the figure is drawn from).


use rule test_significance as judge_claims with:
    input:
        models=expand(MODEL, model=MODELS),
        corpora=expand(f"{RESULTS}/corpora/{{corpus}}.parquet", corpus=CORPORA),
        perplexity=per_corpus("perplexity.parquet"),
        rounding=results(outputs.roundings(CONFIG)),
        correlation=results(outputs.correlations(CONFIG)),
        ablations=per_corpus("ablations.parquet", "ffn"),
        channels=per_corpus("channels.parquet", "state"),
        memory=per_corpus("memory.parquet", "state"),
        capability=results(outputs.capabilities(CONFIG)),
    output:
        csv=ledger("claims.csv", "ledger, every column"),
        cases=ledger("claims_cases.csv", "cases"),
        html=ledger("claims.html", "ledger, to read"),
        tex=f"{RESULTS}/tables/claims.tex",
        parquet=f"{RESULTS}/significance/claims.parquet",
    log:
        f"{LOGS}/judge_claims.log",
    params:
        **given("judge_claims"),
    message:
        "Judging the claims"


rule claims:
    input:
        rules.judge_claims.output,
        expand(f"{RESULTS}/figures/claims.{{ending}}", ending=["png", "svg", "pdf"]),
