# Budgets: shares of sites that are allotted in different ways; slimmer models on `snakemake slim`.
# Inputs: {model}/model.json, {model}/{corpus}/blocks.safetensors; significance/ratios.parquet for
#         what recipes gain.
# Outputs: {model}/{corpus}/budgets.parquet and a recipe for each of its rows,
#          budgets-{allotment}-{level}.yaml; on `snakemake slim`, {model}/{corpus}/slim-{budget}/ and
#          slim-{budget}.json, {model}/gains.parquet, gains.parquet, .json and .csv, and
#          figures/gain as .png, .svg, .pdf.

RECIPES = [f"{FOLDER}/{name}.yaml" for name in outputs.allotments(CONFIG)]
SLIM_CORPUS = CONFIG.slim.corpus if CONFIG.slim else "no-corpus"
SLIM_THREADS = CONFIG.slim.threads if CONFIG.slim else 1


use rule evaluate_dense as evaluate_budgets with:
    output:
        f"{FOLDER}/budgets.json",
        output=f"{FOLDER}/budgets.parquet",
        recipes=RECIPES,
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
    threads: SLIM_THREADS
    resources:
        mem_mb=memory(6000),
        runtime=120,
        gpu=GPU,
        timer=1,
    params:
        **given("slim_model"),
    message:
        "Slimming {wildcards.model} by {wildcards.corpus} within {wildcards.budget}"


use rule slim_model as time_recipes with:
    input:
        model=MODEL,
        blocks=f"{RESULTS}/{{model}}/{SLIM_CORPUS}/blocks.safetensors",
        ratios=f"{RESULTS}/significance/ratios.parquet",
        recipes=lambda wildcards: results(
            outputs.recipes(CONFIG, wildcards.model, SLIM_CORPUS)
        ),
        slim=lambda wildcards: results(outputs.fast_folders(CONFIG, wildcards.model)),
    output:
        f"{RESULTS}/{{model}}/gains.parquet",
        f"{RESULTS}/{{model}}/gains.json",
    log:
        f"{LOGS}/time_recipes/{{model}}.log",
    params:
        **given("time_recipes"),
    message:
        "Timing {wildcards.model} under recipes"


use rule join_perplexity as join_gains with:
    input:
        expand(f"{RESULTS}/{{model}}/gains.parquet", model=outputs.slim_models(CONFIG)),
    output:
        table=f"{RESULTS}/gains.parquet",
        facts=f"{RESULTS}/gains.json",
        csv=f"{RESULTS}/gains.csv",
    log:
        f"{LOGS}/join_gains.log",
    params:
        **given("join_gains"),
    message:
        "Joining what recipes gain"


rule slim:
    input:
        results(outputs.slimmed(CONFIG)),
        expand(
            f"{RESULTS}/figures/{{figure}}.{{ending}}",
            figure=[figure.name for figure in drawn(CONFIG, "slim")],
            ending=["png", "svg", "pdf"],
        ),
