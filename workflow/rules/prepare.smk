# Models, corpora and tasks, made ready.
# Inputs: what the configuration names (hub, files, packages).
# Outputs: {model}/model.json (and checkpoint/), corpora/{corpus}.parquet, tasks/{task}.jsonl,
#          {model}/{corpus}/blocks.safetensors.


rule prepare_model:
    output:
        f"{RESULTS}/{{model}}/model.json",
    log:
        f"{LOGS}/prepare_model/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/prepare_model/{{model}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        source=lambda wildcards: CONFIG.all_models()[wildcards.model].model_dump(
            exclude={"sites"}
        ),
        code=code_hash("keepset.models"),
    message:
        "Preparing model {wildcards.model}"
    script:
        "../scripts/prepare_model.py"


rule prepare_corpus:
    output:
        f"{RESULTS}/corpora/{{corpus}}.parquet",
        f"{RESULTS}/corpora/{{corpus}}.json",
    log:
        f"{LOGS}/prepare_corpus/{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/prepare_corpus/{{corpus}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=60,
    params:
        corpus=lambda wildcards: steps.corpus_source(CONFIG, wildcards.corpus),
        seed=CONFIG.seed,
        code=code_hash("keepset.steps.texts"),
    message:
        "Reading corpus {wildcards.corpus}"
    script:
        "../scripts/prepare_corpus.py"


rule prepare_task:
    input:
        lambda wildcards: expand(
            f"{RESULTS}/corpora/{{corpus}}.parquet",
            corpus=CONFIG.tasks[wildcards.task].corpora or [],
        ),
    output:
        f"{RESULTS}/tasks/{{task}}.jsonl",
    log:
        f"{LOGS}/prepare_task/{{task}}.log",
    benchmark:
        f"{BENCHMARKS}/prepare_task/{{task}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=60,
    params:
        task=lambda wildcards: CONFIG.tasks[wildcards.task].model_dump(),
        seed=CONFIG.seed,
        code=code_hash("keepset.steps.texts"),
    message:
        "Preparing task {wildcards.task}"
    script:
        "../scripts/prepare_task.py"


rule tokenize_corpus:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        corpus=f"{RESULTS}/corpora/{{corpus}}.parquet",
    output:
        f"{RESULTS}/{{model}}/{{corpus}}/blocks.safetensors",
    log:
        f"{LOGS}/tokenize_corpus/{{model}}.{{corpus}}.log",
    benchmark:
        f"{BENCHMARKS}/tokenize_corpus/{{model}}.{{corpus}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        lengths=CONFIG.text.model_dump(include={"block", "calibration_tokens"}),
        evaluation_tokens=lambda wildcards: CONFIG.evaluation_tokens(wildcards.model),
        code=code_hash("keepset.steps.prepare"),
    message:
        "Cutting {wildcards.corpus} into blocks of {wildcards.model}'s tokens"
    script:
        "../scripts/tokenize_corpus.py"


rule models:
    input:
        expand(f"{RESULTS}/{{model}}/model.json", model=MODELS),


# Everything that may touch the network: run it on a node that has one.
rule download:
    input:
        expand(f"{RESULTS}/{{model}}/model.json", model=MODELS),
        expand(f"{RESULTS}/corpora/{{corpus}}.parquet", corpus=CORPORA),
        expand(f"{RESULTS}/tasks/{{task}}.jsonl", task=TASKS),
