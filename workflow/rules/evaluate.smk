# Perplexity and capability under keep rules.
# Inputs: {model}/model.json, {model}/{corpus}/blocks.safetensors and activations.safetensors,
#         tasks/{task}.jsonl; of states, {model}/{corpus}/state.safetensors.
# Outputs: {model}/{corpus}/{dense,static,dynamic,windowed-oracle,windowed-causal}.parquet, and
#          {state-static,state-windowed-oracle,state-windowed-causal}.parquet, joined in
#          {model}/{corpus}/perplexity.parquet; {model}/{corpus}/rounding.parquet, the dynamic rules
#          again with noise in the last bit; {model}/{task}/capability.parquet.


rule evaluate_dense:
    input:
        model=MODEL,
        blocks=f"{FOLDER}/blocks.safetensors",
    output:
        f"{FOLDER}/dense.parquet",
        f"{FOLDER}/dense.json",
    log:
        f"{LOGS}/evaluate_dense/{{model}}.{{corpus}}.log",
    conda:
        "../../envs/study.yaml"
    resources:
        **bill("evaluate_dense", mem_mb=2500, runtime=120),
    params:
        **given("evaluate_dense"),
    message:
        "Evaluating {wildcards.model} dense on {wildcards.corpus}"
    script:
        "../scripts/run_step.py"


# The parts of every kind's grid. Windows are the longest jobs, so they start first.
for KIND, EVALUATION in evaluations():
    WINDOWED, ROUNDING = EVALUATION.part == "windowed", EVALUATION.rounding
    WILDCARDS = "{model}.{corpus}.{choice}" if WINDOWED else "{model}.{corpus}"
    TITLE = EVALUATION.title.format(
        model="{wildcards.model}", choice="{wildcards.choice}"
    )

    rule:
        name:
            EVALUATION.rule
        input:
            **({"sets": f"{FOLDER}/{KIND.sets}"} if EVALUATION.part == "static" else {}),
            model=MODEL,
            blocks=f"{FOLDER}/blocks.safetensors",
        output:
            f"{FOLDER}/{EVALUATION.table}.json",
            *([f"{FOLDER}/{ROUNDING}.json"] if ROUNDING else []),
            **({"rounding": f"{FOLDER}/{ROUNDING}.parquet"} if ROUNDING else {}),
            output=f"{FOLDER}/{EVALUATION.table}.parquet",
        log:
            f"{LOGS}/{EVALUATION.rule}/{WILDCARDS}.log",
        priority: 50 if WINDOWED else 0
        conda:
            "../../envs/study.yaml"
        resources:
            **bill(EVALUATION.rule, mem_mb=2500, runtime=120),
        params:
            **given(EVALUATION.rule),
        message:
            f"Evaluating {TITLE} on {{wildcards.corpus}}"
        script:
            "../scripts/run_step.py"


rule join_perplexity:
    input:
        lambda wildcards: [
            f"{FOLDER}/{part}.parquet"
            for part in outputs.perplexity_parts(
                CONFIG, wildcards.model, wildcards.corpus
            )
        ],
    output:
        f"{FOLDER}/perplexity.parquet",
        f"{FOLDER}/perplexity.json",
    log:
        f"{LOGS}/join_perplexity/{{model}}.{{corpus}}.log",
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(500),
        runtime=5,
    params:
        **given("join_perplexity"),
    message:
        "Joining the perplexities of {wildcards.model} on {wildcards.corpus}"
    script:
        "../scripts/run_step.py"


use rule evaluate_dense as evaluate_capability with:
    input:
        model=MODEL,
        sets=lambda wildcards: results(outputs.static_sets(CONFIG, wildcards.model)),
        recipes=lambda wildcards: CONFIG.capability.recipes.get(wildcards.model, []),
        passages=f"{RESULTS}/tasks/{{task}}.jsonl",
        blocks=f"{RESULTS}/{{model}}/{CONFIG.capability.corpus}/blocks.safetensors",
    output:
        f"{RESULTS}/{{model}}/{{task}}/capability.parquet",
        f"{RESULTS}/{{model}}/{{task}}/capability.json",
    log:
        f"{LOGS}/evaluate_capability/{{model}}.{{task}}.log",
    wildcard_constraints:
        task=OTHER_TASKS,
    priority: 20
    resources:
        **bill("evaluate_capability", mem_mb=2500, runtime=120),
    params:
        **given("evaluate_capability"),
    message:
        "Running task {wildcards.task} with {wildcards.model}"


use rule evaluate_capability as evaluate_harness with:
    log:
        f"{LOGS}/evaluate_harness/{{model}}.{{task}}.log",
    wildcard_constraints:
        task=HARNESS,
    conda:
        "../../envs/harness.yaml"
    resources:
        **bill("evaluate_harness", mem_mb=2500, runtime=120),
    params:
        **given("evaluate_harness"),
    message:
        "Running task {wildcards.task} of the evaluation harness with {wildcards.model}"


rule perplexity:
    input:
        per_corpus("perplexity.parquet"),


rule capability:
    input:
        results(outputs.capabilities(CONFIG)),
