# Recurrent states (Mamba-2): scored, evaluated, correlated, cut.
# Inputs: {model}/model.json, {model}/{corpus}/blocks.safetensors.
# Outputs: {model}/{corpus}/state.safetensors (keep sets), channels.parquet, memory.parquet,
#          state-static.parquet, state-windowed-{oracle,causal}.parquet, length.parquet,
#          correlation-state.parquet; on `snakemake pruned`, pruned/ and pruned.json.


rule score_state:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        blocks=f"{RESULTS}/{{model}}/{{corpus}}/blocks.safetensors",
    output:
        sets=f"{RESULTS}/{{model}}/{{corpus}}/state.safetensors",
        channels=f"{RESULTS}/{{model}}/{{corpus}}/channels.parquet",
        memory=f"{RESULTS}/{{model}}/{{corpus}}/memory.parquet",
        sidecars=[
            f"{RESULTS}/{{model}}/{{corpus}}/{name}.json"
            for name in ("state", "channels", "memory")
        ],
    log:
        f"{LOGS}/score_state/{{model}}.{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/score_state/{{model}}.{{corpus}}.tsv"
    priority: 100
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("score_state", mem_mb=3500, runtime=120),
    params:
        run=run_settings,
        settings=state_settings(),
        identity=identity,
        code=code_hash("keepset.steps.states"),
    message:
        "Scoring the state of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/score_state.py"


rule evaluate_state:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        blocks=f"{RESULTS}/{{model}}/{{corpus}}/blocks.safetensors",
        sets=f"{RESULTS}/{{model}}/{{corpus}}/state.safetensors",
    output:
        f"{RESULTS}/{{model}}/{{corpus}}/state-static.parquet",
        f"{RESULTS}/{{model}}/{{corpus}}/state-static.json",
    log:
        f"{LOGS}/evaluate_state/{{model}}.{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_state/{{model}}.{{corpus}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("evaluate_state", mem_mb=2500, runtime=120),
    params:
        run=run_settings,
        settings=state_settings(),
        identity=identity,
        code=code_hash("keepset.steps.states"),
    message:
        "Evaluating the pruned state of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/evaluate_state.py"


rule evaluate_state_windowed:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        blocks=f"{RESULTS}/{{model}}/{{corpus}}/blocks.safetensors",
    output:
        f"{RESULTS}/{{model}}/{{corpus}}/state-windowed-{{choice}}.parquet",
        f"{RESULTS}/{{model}}/{{corpus}}/state-windowed-{{choice}}.json",
    log:
        f"{LOGS}/evaluate_state_windowed/{{model}}.{{corpus}}.{{choice}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_state_windowed/{{model}}.{{corpus}}.{{choice}}.tsv"
    priority: 50
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("evaluate_state_windowed", mem_mb=2500, runtime=120),
    params:
        run=run_settings,
        settings=state_settings("dial"),
        identity=identity,
        code=code_hash("keepset.steps.states"),
    message:
        "Evaluating the windowed state ({wildcards.choice}) of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/evaluate_state_windowed.py"


rule evaluate_state_lengths:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        blocks=f"{RESULTS}/{{model}}/{{corpus}}/blocks.safetensors",
        sets=f"{RESULTS}/{{model}}/{{corpus}}/state.safetensors",
    output:
        f"{RESULTS}/{{model}}/{{corpus}}/length.parquet",
        f"{RESULTS}/{{model}}/{{corpus}}/length.json",
    log:
        f"{LOGS}/evaluate_state_lengths/{{model}}.{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_state_lengths/{{model}}.{{corpus}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("evaluate_state_lengths", mem_mb=2500, runtime=120),
    params:
        run=run_settings,
        settings=state_settings("state"),
        identity=identity,
        code=code_hash("keepset.steps.states"),
    message:
        "Evaluating longer passages with {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/evaluate_state_lengths.py"


rule correlate_state:
    input:
        channels=f"{RESULTS}/{{model}}/{{corpus}}/channels.parquet",
    output:
        f"{RESULTS}/{{model}}/{{corpus}}/correlation-state.parquet",
        f"{RESULTS}/{{model}}/{{corpus}}/correlation-state.json",
    log:
        f"{LOGS}/correlate_state/{{model}}.{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/correlate_state/{{model}}.{{corpus}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=15,
    params:
        statistics=CONFIG.statistics.model_dump(),
        seed=CONFIG.seed,
        identity=identity,
        code=code_hash("keepset.analyse.correlation"),
    message:
        "Correlating the state channels of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/correlate_state.py"


rule prune_state:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        blocks=f"{RESULTS}/{{model}}/{{corpus}}/blocks.safetensors",
        sets=f"{RESULTS}/{{model}}/{{corpus}}/state.safetensors",
    output:
        folder=directory(f"{RESULTS}/{{model}}/{{corpus}}/pruned"),
        facts=f"{RESULTS}/{{model}}/{{corpus}}/pruned.json",
    log:
        f"{LOGS}/prune_state/{{model}}.{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/prune_state/{{model}}.{{corpus}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("prune_state", mem_mb=2500, runtime=60),
    params:
        run=run_settings,
        settings=state_settings("prune"),
        identity=identity,
        code=code_hash("keepset.steps.states"),
    message:
        "Pruning the state of {wildcards.model} by {wildcards.corpus}"
    script:
        "../scripts/prune_state.py"


rule states:
    input:
        per_corpus("state-static.parquet", "state"),
        per_corpus("correlation-state.parquet", "state"),
        per_corpus("length.parquet", "state"),


rule pruned:
    input:
        per_corpus("pruned.json", "state"),
