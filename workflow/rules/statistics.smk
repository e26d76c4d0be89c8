# Intervals, tests, and the tables of the paper.
# Inputs: every perplexity, rounding, capability, correlation, channels and length table of this run.
# Outputs: significance/*.parquet, tables/*.csv and *.tex.


use rule join_perplexity as test_significance with:
    input:
        perplexity=per_corpus("perplexity.parquet"),
        capability=results(outputs.capabilities(CONFIG)),
        rounding=results(outputs.roundings(CONFIG)),
    output:
        ratios=f"{RESULTS}/significance/ratios.parquet",
        capability=f"{RESULTS}/significance/capability.parquet",
        trend=f"{RESULTS}/significance/trend.parquet",
    log:
        f"{LOGS}/test_significance.log",
    resources:
        mem_mb=memory(1000),
        runtime=15,
    params:
        **given("test_significance"),
    message:
        "Testing significance"


use rule join_perplexity as join_correlations with:
    input:
        results(outputs.correlations(CONFIG)),
    output:
        f"{RESULTS}/significance/correlation.parquet",
        f"{RESULTS}/significance/correlation.json",
    log:
        f"{LOGS}/join_correlations.log",
    params:
        **given("join_correlations"),
    message:
        "Joining the correlations"


use rule test_significance as compare_settings with:
    input:
        perplexity=per_corpus("perplexity.parquet"),
        capability=results(outputs.capabilities(CONFIG)),
        ratios=[f"{RESULTS}/significance/ratios.parquet"],
        lengths=per_corpus("length.parquet", "state"),
    output:
        recall=f"{RESULTS}/significance/recall.parquet",
        state_pairs=f"{RESULTS}/significance/state_pairs.parquet",
        side_by_side=f"{RESULTS}/significance/side_by_side.parquet",
        lengths=f"{RESULTS}/significance/lengths.parquet",
    log:
        f"{LOGS}/compare_settings.log",
    params:
        **given("compare_settings"),
    message:
        "Comparing settings"


use rule join_perplexity as sort_channels with:
    input:
        per_corpus("channels.parquet", "state"),
    output:
        channels=f"{RESULTS}/significance/channels.parquet",
        quadrants=f"{RESULTS}/significance/quadrants.parquet",
    log:
        f"{LOGS}/sort_channels.log",
    params:
        **given("sort_channels"),
    message:
        "Sorting channels into quadrants"


TABLES = outputs.printed_tables(CONFIG)


use rule join_perplexity as write_tables with:
    input:
        **{
            source: f"{RESULTS}/significance/{source}.parquet"
            for source in dict.fromkeys(TABLES.values())
        },
    output:
        csv=report(
            expand(f"{RESULTS}/tables/{{table}}.csv", table=TABLES),
            caption="../report/tables.rst",
            category="Tables",
        ),
        tex=expand(f"{RESULTS}/tables/{{table}}.tex", table=TABLES),
    log:
        f"{LOGS}/write_tables.log",
    params:
        **given("write_tables"),
    message:
        "Writing tables"


rule tables:
    input:
        rules.write_tables.output,
        rules.test_significance.output,
