# Recurrent states (Mamba-2): scored, evaluated on longer passages, correlated, cut. Their grid is
# evaluated in evaluate.smk.
# Inputs: {model}/model.json, {model}/{corpus}/blocks.safetensors.
# Outputs: {model}/{corpus}/state.safetensors (keep sets), channels.parquet, memory.parquet,
#          length.parquet, correlation-state.parquet; on `snakemake pruned`, pruned/ and pruned.json.


use rule cache_activations as score_state with:
    output:
        sets=f"{FOLDER}/state.safetensors",
        channels=f"{FOLDER}/channels.parquet",
        memory=f"{FOLDER}/memory.parquet",
        sidecars=[f"{FOLDER}/{name}.json" for name in ("state", "channels", "memory")],
    log:
        f"{LOGS}/score_state/{{model}}.{{corpus}}.log",
    resources:
        **bill("score_state", mem_mb=3500, runtime=120),
    params:
        **given("score_state"),
    message:
        "Scoring the state of {wildcards.model} on {wildcards.corpus}"


use rule evaluate_dense as evaluate_state_lengths with:
    input:
        model=MODEL,
        blocks=f"{FOLDER}/blocks.safetensors",
        sets=f"{FOLDER}/state.safetensors",
    output:
        f"{FOLDER}/length.parquet",
        f"{FOLDER}/length.json",
    log:
        f"{LOGS}/evaluate_state_lengths/{{model}}.{{corpus}}.log",
    resources:
        **bill("evaluate_state_lengths", mem_mb=2500, runtime=120),
    params:
        **given("evaluate_state_lengths"),
    message:
        "Evaluating longer passages with {wildcards.model} on {wildcards.corpus}"


use rule evaluate_state_lengths as prune_state with:
    output:
        directory(f"{FOLDER}/pruned"),
        f"{FOLDER}/pruned.json",
    log:
        f"{LOGS}/prune_state/{{model}}.{{corpus}}.log",
    resources:
        **bill("prune_state", mem_mb=2500, runtime=60),
    params:
        **given("prune_state"),
    message:
        "Pruning the state of {wildcards.model} by {wildcards.corpus}"


use rule join_perplexity as correlate_state with:
    input:
        channels=f"{FOLDER}/channels.parquet",
    output:
        f"{FOLDER}/correlation-state.parquet",
        f"{FOLDER}/correlation-state.json",
    log:
        f"{LOGS}/correlate_state/{{model}}.{{corpus}}.log",
    resources:
        mem_mb=memory(1000),
        runtime=15,
    params:
        **given("correlate_state"),
    message:
        "Correlating the state channels of {wildcards.model} on {wildcards.corpus}"


rule states:
    input:
        per_corpus("state-static.parquet", "state"),
        per_corpus("correlation-state.parquet", "state"),
        per_corpus("length.parquet", "state"),


rule pruned:
    input:
        per_corpus("pruned.json", "state"),
        per_corpus("pruned-experts.json", "expert"),
