# Routed experts: scored. Their grid is evaluated in evaluate.smk.
# Inputs: {model}/model.json, {model}/{corpus}/blocks.safetensors.
# Outputs: {model}/{corpus}/experts.safetensors and .json (sums that keep sets are ranked by).


use rule cache_activations as score_experts with:
    output:
        f"{FOLDER}/experts.safetensors",
        f"{FOLDER}/experts.json",
    log:
        f"{LOGS}/score_experts/{{model}}.{{corpus}}.log",
    resources:
        **bill("score_experts", mem_mb=3500, runtime=120),
    params:
        **given("score_experts"),
    message:
        "Scoring the experts of {wildcards.model} on {wildcards.corpus}"


rule experts:
    input:
        per_corpus("expert-static.parquet", "expert"),
