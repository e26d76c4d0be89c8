# Budgets: shares of sites that are allotted in different ways; slimmer models on `snakemake slim`.
# Inputs: {model}/model.json, {model}/{corpus}/blocks.safetensors.
# Outputs: {model}/{corpus}/budgets.parquet; on `snakemake slim`, {model}/{corpus}/slim-{budget}/ and
#          slim-{budget}.json.


use rule evaluate_dense as evaluate_budgets with:
    output:
        f"{FOLDER}/budgets.parquet",
        f"{FOLDER}/budgets.json",
    log:
        f"{LOGS}/evaluate_budgets/{{model}}.{{corpus}}.log",
    resources:
        **bill("evaluate_budgets", mem_mb=3500, runtime=120),
    params:
        **given("evaluate_budgets"),
    message:
        "Allotting shares to the sites of {wildcards.model} on {wildcards.corpus}"


# Speed is measured, so these run alone.
use rule evaluate_dense as slim_model with:
    output:
        directory(f"{FOLDER}/slim-{{budget}}"),
        f"{FOLDER}/slim-{{budget}}.json",
    log:
        f"{LOGS}/slim_model/{{model}}.{{corpus}}.{{budget}}.log",
    threads: CONFIG.slim.threads if CONFIG.slim else 1
    resources:
        mem_mb=memory(6000),
        runtime=120,
        gpu=GPU,
        timer=1,
    params:
        **given("slim_model"),
    message:
        "Slimming {wildcards.model} by {wildcards.corpus} within {wildcards.budget}"


rule slim:
    input:
        results(outputs.slimmed(CONFIG)),
