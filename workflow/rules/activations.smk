# The activation cache, and size against impact.
# Inputs: {model}/model.json, {model}/{corpus}/blocks.safetensors.
# Outputs: {model}/{corpus}/activations.safetensors and .json, {model}/{corpus}/correlation.parquet.


rule cache_activations:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        blocks=f"{RESULTS}/{{model}}/{{corpus}}/blocks.safetensors",
    output:
        f"{RESULTS}/{{model}}/{{corpus}}/activations.safetensors",
        f"{RESULTS}/{{model}}/{{corpus}}/activations.json",
    log:
        f"{LOGS}/cache_activations/{{model}}.{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/cache_activations/{{model}}.{{corpus}}.tsv"
    priority: 100
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("cache_activations", mem_mb=3500, runtime=60),
    params:
        run=run_settings,
        gradients=gradients,
        code=code_hash("keepset.steps.activations"),
    message:
        "Caching activations of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/cache_activations.py"


rule correlate_size_impact:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        blocks=f"{RESULTS}/{{model}}/{{corpus}}/blocks.safetensors",
        cache=f"{RESULTS}/{{model}}/{{corpus}}/activations.safetensors",
    output:
        f"{RESULTS}/{{model}}/{{corpus}}/correlation.parquet",
        f"{RESULTS}/{{model}}/{{corpus}}/correlation.json",
    log:
        f"{LOGS}/correlate_size_impact/{{model}}.{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/correlate_size_impact/{{model}}.{{corpus}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("correlate_size_impact", mem_mb=2500, runtime=60),
    params:
        run=run_settings,
        settings=lambda wildcards: steps.correlation_settings(CONFIG, wildcards.corpus),
        identity=identity,
        code=code_hash("keepset.steps.correlation"),
    message:
        "Correlating size and impact of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/correlate_size_impact.py"


rule activations:
    input:
        per_corpus("activations.safetensors", "ffn"),


rule correlations:
    input:
        correlation_parts(),
