# Models, corpora and tasks, made ready.
# Inputs: what the configuration names (hub, files, packages).
# Outputs: {model}/model.json (and checkpoint/), corpora/{corpus}.parquet, tasks/{task}.jsonl,
#          {model}/{corpus}/blocks.safetensors.


rule prepare_model:
    output:
        MODEL,
    log:
        f"{LOGS}/prepare_model/{{model}}.log",
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        **given("prepare_model"),
    message:
        "Preparing model {wildcards.model}"
    script:
        "../scripts/run_step.py"


use rule prepare_model as prepare_corpus with:
    output:
        f"{RESULTS}/corpora/{{corpus}}.parquet",
        f"{RESULTS}/corpora/{{corpus}}.json",
    log:
        f"{LOGS}/prepare_corpus/{{corpus}}.log",
    resources:
        mem_mb=memory(2000),
        runtime=60,
    params:
        **given("prepare_corpus"),
    message:
        "Reading corpus {wildcards.corpus}"


use rule prepare_corpus as prepare_task with:
    input:
        corpora=lambda wildcards: expand(
            f"{RESULTS}/corpora/{{corpus}}.parquet",
            corpus=CONFIG.tasks[wildcards.task].corpora or [],
        ),
    output:
        f"{RESULTS}/tasks/{{task}}.jsonl",
    log:
        f"{LOGS}/prepare_task/{{task}}.log",
    wildcard_constraints:
        task=OTHER_TASKS,
    params:
        **given("prepare_task"),
    message:
        "Preparing task {wildcards.task}"


use rule prepare_corpus as prepare_harness with:
    output:
        f"{RESULTS}/tasks/{{task}}.jsonl",
    log:
        f"{LOGS}/prepare_harness/{{task}}.log",
    wildcard_constraints:
        task=HARNESS,
    conda:
        "../../envs/harness.yaml"
    params:
        **given("prepare_harness"),
    message:
        "Preparing task {wildcards.task} of the evaluation harness"


use rule prepare_model as tokenize_corpus with:
    input:
        model=MODEL,
        corpus=f"{RESULTS}/corpora/{{corpus}}.parquet",
    output:
        f"{FOLDER}/blocks.safetensors",
    log:
        f"{LOGS}/tokenize_corpus/{{model}}.{{corpus}}.log",
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        **given("tokenize_corpus"),
    message:
        "Cutting {wildcards.corpus} into blocks of {wildcards.model}'s tokens"


rule models:
    input:
        expand(MODEL, model=MODELS),


# Everything that may touch the network: run it on a node that has one.
rule download:
    input:
        expand(MODEL, model=MODELS),
        expand(f"{RESULTS}/corpora/{{corpus}}.parquet", corpus=CORPORA),
        expand(f"{RESULTS}/tasks/{{task}}.jsonl", task=TASKS),
