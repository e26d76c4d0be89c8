# Intervals, tests, and the tables of the paper.
# Inputs: every perplexity, capability and correlation table of this run.
# Outputs: significance/*.parquet, tables/*.csv and *.tex.


rule test_significance:
    input:
        perplexity=per_corpus("perplexity.parquet"),
        capability=expand(
            f"{RESULTS}/{{model}}/{{task}}/capability.parquet",
            model=MODELS,
            task=TASKS,
        ),
    output:
        ratios=f"{RESULTS}/significance/ratios.parquet",
        capability=f"{RESULTS}/significance/capability.parquet",
        trend=f"{RESULTS}/significance/trend.parquet",
    log:
        f"{LOGS}/test_significance.log",
    benchmark:
        f"{BENCHMARKS}/test_significance.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=15,
    params:
        statistics=CONFIG.statistics.model_dump(),
        seed=CONFIG.seed,
        code=code_hash("keepset.steps.significance"),
    message:
        "Testing significance"
    script:
        "../scripts/test_significance.py"


rule join_correlations:
    input:
        correlation_parts(),
    output:
        f"{RESULTS}/significance/correlation.parquet",
        f"{RESULTS}/significance/correlation.json",
    log:
        f"{LOGS}/join_correlations.log",
    benchmark:
        f"{BENCHMARKS}/join_correlations.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(500),
        runtime=5,
    params:
        code=code_hash("keepset.steps.tables"),
    message:
        "Joining the correlations"
    script:
        "../scripts/join_tables.py"


rule compare_settings:
    input:
        perplexity=per_corpus("perplexity.parquet"),
        capability=expand(
            f"{RESULTS}/{{model}}/{{task}}/capability.parquet",
            model=MODELS,
            task=TASKS,
        ),
        ratios=[f"{RESULTS}/significance/ratios.parquet"],
        lengths=per_corpus("length.parquet", "state"),
    output:
        recall=f"{RESULTS}/significance/recall.parquet",
        state_pairs=f"{RESULTS}/significance/state_pairs.parquet",
        side_by_side=f"{RESULTS}/significance/side_by_side.parquet",
        lengths=f"{RESULTS}/significance/lengths.parquet",
    log:
        f"{LOGS}/compare_settings.log",
    benchmark:
        f"{BENCHMARKS}/compare_settings.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=15,
    params:
        statistics=CONFIG.statistics.model_dump(),
        seed=CONFIG.seed,
        code=code_hash("keepset.steps.comparison"),
    message:
        "Comparing settings"
    script:
        "../scripts/compare_settings.py"


rule sort_channels:
    input:
        per_corpus("channels.parquet", "state"),
    output:
        channels=f"{RESULTS}/significance/channels.parquet",
        quadrants=f"{RESULTS}/significance/quadrants.parquet",
    log:
        f"{LOGS}/sort_channels.log",
    benchmark:
        f"{BENCHMARKS}/sort_channels.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(500),
        runtime=5,
    params:
        code=code_hash("keepset.steps.comparison"),
    message:
        "Sorting channels into quadrants"
    script:
        "../scripts/sort_channels.py"


TABLES = steps.printed_tables(CONFIG)
TABLE_NAMES = list(TABLES)


rule write_tables:
    input:
        **{
            source: f"{RESULTS}/significance/{source}.parquet"
            for source in dict.fromkeys(TABLES.values())
        },
    output:
        csv=report(
            expand(f"{RESULTS}/tables/{{table}}.csv", table=TABLE_NAMES),
            caption="../report/tables.rst",
            category="Tables",
        ),
        tex=expand(f"{RESULTS}/tables/{{table}}.tex", table=TABLE_NAMES),
    log:
        f"{LOGS}/write_tables.log",
    benchmark:
        f"{BENCHMARKS}/write_tables.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(500),
        runtime=5,
    params:
        confidence=CONFIG.statistics.confidence,
        code=code_hash("keepset.steps.publish"),
    message:
        "Writing tables"
    script:
        "../scripts/write_tables.py"


rule tables:
    input:
        rules.write_tables.output,
        rules.test_significance.output,
