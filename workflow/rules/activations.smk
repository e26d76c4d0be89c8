# The activation cache, and size against impact.
# Inputs: {model}/model.json, {model}/{corpus}/blocks.safetensors.
# Outputs: {model}/{corpus}/activations.safetensors and .json, correlation.parquet, and
#          ablations.parquet, which is empty where no unit is ablated.


rule cache_activations:
    input:
        model=MODEL,
        blocks=f"{FOLDER}/blocks.safetensors",
    output:
        f"{FOLDER}/activations.safetensors",
        f"{FOLDER}/activations.json",
    log:
        f"{LOGS}/cache_activations/{{model}}.{{corpus}}.log",
    priority: 100
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("cache_activations", mem_mb=3500, runtime=60),
    params:
        **given("cache_activations"),
    message:
        "Caching activations of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/run_step.py"


use rule cache_activations as correlate_size_impact with:
    input:
        model=MODEL,
        blocks=f"{FOLDER}/blocks.safetensors",
        cache=f"{FOLDER}/activations.safetensors",
    output:
        correlation=f"{FOLDER}/correlation.parquet",
        ablations=f"{FOLDER}/ablations.parquet",
        sidecars=[f"{FOLDER}/{name}.json" for name in ("correlation", "ablations")],
    log:
        f"{LOGS}/correlate_size_impact/{{model}}.{{corpus}}.log",
    priority: 0
    resources:
        **bill("correlate_size_impact", mem_mb=2500, runtime=60),
    params:
        **given("correlate_size_impact"),
    message:
        "Correlating size and impact of {wildcards.model} on {wildcards.corpus}"


rule activations:
    input:
        per_corpus("activations.safetensors", "ffn"),


rule correlations:
    input:
        results(outputs.correlations(CONFIG)),
