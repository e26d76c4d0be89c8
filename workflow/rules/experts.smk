# Routed experts: scored, cut. Their grid is evaluated in evaluate.smk.
# Inputs: {model}/model.json, {model}/{corpus}/blocks.safetensors.
# Outputs: {model}/{corpus}/experts.safetensors and .json (sums that keep sets are ranked by); on
#          `snakemake pruned`, pruned-experts/ and pruned-experts.json.


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


use rule evaluate_dense as prune_experts with:
    input:
        model=MODEL,
        blocks=f"{FOLDER}/blocks.safetensors",
        sets=f"{FOLDER}/experts.safetensors",
    output:
        directory(f"{FOLDER}/pruned-experts"),
        f"{FOLDER}/pruned-experts.json",
    log:
        f"{LOGS}/prune_experts/{{model}}.{{corpus}}.log",
    resources:
        **bill("prune_experts", mem_mb=2500, runtime=60),
    params:
        **given("prune_experts"),
    message:
        "Cutting experts of {wildcards.model} by {wildcards.corpus}"


rule experts:
    input:
        per_corpus("expert-static.parquet", "expert"),
