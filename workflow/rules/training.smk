# Specimens: small models trained here, on `snakemake --cores 2 train_specimens` only.
# Inputs: corpora/{corpus}.parquet.
# Outputs: training/{tokenizer.json,text.safetensors,sources.json},
#          training/{specimen}/model/ (a checkpoint folder) and losses.parquet, training/gates.json.

# Training takes long. Its rules rerun when a setting of it changes, not when code or a file's time
# does; --forcerun train_specimen runs them anyway. `use rule` would pass on the parameter
# `code`, so the first of them is written out.
SPECIMENS = list(CONFIG.training.specimens) if CONFIG.training else []
TRAINING_TEXTS = expand(
    f"{RESULTS}/corpora/{{corpus}}.parquet",
    corpus=CONFIG.training.corpora if CONFIG.training else [],
)


wildcard_constraints:
    specimen="|".join(map(re.escape, SPECIMENS)) or "no-specimen",


rule prepare_training:
    input:
        corpora=ancient(TRAINING_TEXTS),
    output:
        f"{RESULTS}/training/tokenizer.json",
        f"{RESULTS}/training/text.safetensors",
        f"{RESULTS}/training/sources.json",
    log:
        f"{LOGS}/prepare_training.log",
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        **given("prepare_training"),
    message:
        "Preparing tokenizer and training text"
    script:
        "../scripts/run_step.py"


use rule prepare_training as train_specimen with:
    input:
        ancient(f"{RESULTS}/training/tokenizer.json"),
        ancient(f"{RESULTS}/training/sources.json"),
        tokens=ancient(f"{RESULTS}/training/text.safetensors"),
    output:
        directory(f"{RESULTS}/training/{{specimen}}/model"),
        f"{RESULTS}/training/{{specimen}}/losses.parquet",
        f"{RESULTS}/training/{{specimen}}/losses.json",
    log:
        f"{LOGS}/train_specimen/{{specimen}}.log",
    resources:
        mem_mb=memory(3000),
        runtime=720,
        gpu=GPU,
    params:
        **given("train_specimen"),
    message:
        "Training specimen {wildcards.specimen}"


use rule prepare_training as measure_specimens with:
    input:
        checkpoints=expand(f"{RESULTS}/training/{{specimen}}/model", specimen=SPECIMENS),
        tokens=ancient(f"{RESULTS}/training/text.safetensors"),
        corpora=ancient(TRAINING_TEXTS),
    output:
        f"{RESULTS}/training/gates.json",
    log:
        f"{LOGS}/measure_specimens.log",
    resources:
        mem_mb=memory(3000),
        runtime=30,
    params:
        **given("measure_specimens"),
    message:
        "Comparing the specimens with their gates"


rule train_specimens:
    input:
        f"{RESULTS}/training/gates.json",
        f"{RESULTS}/training/loss_curve.png" if SPECIMENS else [],
