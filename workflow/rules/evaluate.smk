# Perplexity and capability under keep rules.
# Inputs: {model}/model.json, {model}/{corpus}/blocks.safetensors and activations.safetensors,
#         tasks/{task}.jsonl.
# Outputs: {model}/{corpus}/{dense,static,dynamic,windowed-oracle,windowed-causal}.parquet,
#          joined in {model}/{corpus}/perplexity.parquet; {model}/{task}/capability.parquet.


rule evaluate_dense:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        blocks=f"{RESULTS}/{{model}}/{{corpus}}/blocks.safetensors",
    output:
        f"{RESULTS}/{{model}}/{{corpus}}/dense.parquet",
        f"{RESULTS}/{{model}}/{{corpus}}/dense.json",
    log:
        f"{LOGS}/evaluate_dense/{{model}}.{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_dense/{{model}}.{{corpus}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("evaluate_dense", mem_mb=2500, runtime=120),
    params:
        run=run_settings,
        identity=identity,
        code=code_hash("keepset.steps.evaluation"),
    message:
        "Evaluating {wildcards.model} dense on {wildcards.corpus}"
    script:
        "../scripts/evaluate_dense.py"


rule evaluate_static:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        blocks=f"{RESULTS}/{{model}}/{{corpus}}/blocks.safetensors",
        cache=f"{RESULTS}/{{model}}/{{corpus}}/activations.safetensors",
    output:
        f"{RESULTS}/{{model}}/{{corpus}}/static.parquet",
        f"{RESULTS}/{{model}}/{{corpus}}/static.json",
    log:
        f"{LOGS}/evaluate_static/{{model}}.{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_static/{{model}}.{{corpus}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("evaluate_static", mem_mb=2500, runtime=120),
    params:
        run=run_settings,
        grid=grid("static"),
        seeds=CONFIG.seeds(),
        gradients=gradients,
        identity=identity,
        code=code_hash("keepset.steps.evaluation"),
    message:
        "Evaluating {wildcards.model} static on {wildcards.corpus}"
    script:
        "../scripts/evaluate_static.py"


rule evaluate_dynamic:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        blocks=f"{RESULTS}/{{model}}/{{corpus}}/blocks.safetensors",
    output:
        f"{RESULTS}/{{model}}/{{corpus}}/dynamic.parquet",
        f"{RESULTS}/{{model}}/{{corpus}}/dynamic.json",
    log:
        f"{LOGS}/evaluate_dynamic/{{model}}.{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_dynamic/{{model}}.{{corpus}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("evaluate_dynamic", mem_mb=2500, runtime=120),
    params:
        run=run_settings,
        grid=grid("dynamic"),
        seeds=CONFIG.seeds(),
        identity=identity,
        code=code_hash("keepset.steps.evaluation"),
    message:
        "Evaluating {wildcards.model} dynamic on {wildcards.corpus}"
    script:
        "../scripts/evaluate_dynamic.py"


rule evaluate_windowed:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        blocks=f"{RESULTS}/{{model}}/{{corpus}}/blocks.safetensors",
    output:
        f"{RESULTS}/{{model}}/{{corpus}}/windowed-{{choice}}.parquet",
        f"{RESULTS}/{{model}}/{{corpus}}/windowed-{{choice}}.json",
    log:
        f"{LOGS}/evaluate_windowed/{{model}}.{{corpus}}.{{choice}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_windowed/{{model}}.{{corpus}}.{{choice}}.tsv"
    priority: 50
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("evaluate_windowed", mem_mb=2500, runtime=120),
    params:
        run=run_settings,
        grid=grid("windowed"),
        seeds=CONFIG.seeds(),
        identity=identity,
        code=code_hash("keepset.steps.evaluation"),
    message:
        "Evaluating {wildcards.model} windowed ({wildcards.choice}) on {wildcards.corpus}"
    script:
        "../scripts/evaluate_windowed.py"


rule join_perplexity:
    input:
        perplexity_parts,
    output:
        f"{RESULTS}/{{model}}/{{corpus}}/perplexity.parquet",
        f"{RESULTS}/{{model}}/{{corpus}}/perplexity.json",
    log:
        f"{LOGS}/join_perplexity/{{model}}.{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/join_perplexity/{{model}}.{{corpus}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(500),
        runtime=5,
    params:
        code=code_hash("keepset.steps.tables"),
    message:
        "Joining the perplexities of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/join_tables.py"


rule evaluate_capability:
    input:
        unpack(chosen_units),
        model=f"{RESULTS}/{{model}}/model.json",
        passages=f"{RESULTS}/tasks/{{task}}.jsonl",
        blocks=f"{RESULTS}/{{model}}/{CONFIG.capability.corpus}/blocks.safetensors",
    output:
        f"{RESULTS}/{{model}}/{{task}}/capability.parquet",
        f"{RESULTS}/{{model}}/{{task}}/capability.json",
    log:
        f"{LOGS}/evaluate_capability/{{model}}.{{task}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_capability/{{model}}.{{task}}.tsv"
    priority: 20
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("evaluate_capability", mem_mb=2500, runtime=120),
    params:
        run=run_settings,
        settings=lambda wildcards: steps.capability_settings(CONFIG, wildcards.model),
        identity=identity,
        code=code_hash("keepset.steps.evaluation"),
    message:
        "Running task {wildcards.task} with {wildcards.model}"
    script:
        "../scripts/evaluate_capability.py"


rule perplexity:
    input:
        per_corpus("perplexity.parquet"),


rule capability:
    input:
        expand(
            f"{RESULTS}/{{model}}/{{task}}/capability.parquet",
            model=MODELS,
            task=TASKS,
        ),
