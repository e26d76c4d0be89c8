# Specimens: small models trained here, on `snakemake --cores 2 train_specimens` only.
# Inputs: corpora/{corpus}.parquet.
# Outputs: training/{tokenizer.json,text.safetensors,sources.json},
#          training/{specimen}/model/ (a checkpoint folder) and losses.parquet, training/gates.json.

# A training takes hours. Its rules rerun when a setting of it changes, not when code or a file's
# time does; --forcerun train_specimen runs them anyway.
SPECIMENS = list(CONFIG.training.specimens) if CONFIG.training else []
TRAINING = CONFIG.training.model_dump() if CONFIG.training else {}
TRAINING_DATA = steps.training_data(CONFIG)


wildcard_constraints:
    specimen="|".join(map(re.escape, SPECIMENS)) or "no-specimen",


rule prepare_training:
    input:
        ancient(
            expand(
                f"{RESULTS}/corpora/{{corpus}}.parquet",
                corpus=TRAINING.get("corpora", []),
            )
        ),
    output:
        tokenizer=f"{RESULTS}/training/tokenizer.json",
        text=f"{RESULTS}/training/text.safetensors",
        sources=f"{RESULTS}/training/sources.json",
    log:
        f"{LOGS}/prepare_training.log",
    benchmark:
        f"{BENCHMARKS}/prepare_training.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        training=TRAINING_DATA["training"],
        corpora=TRAINING_DATA["corpora"],
    message:
        "Preparing tokenizer and training text"
    script:
        "../scripts/prepare_training.py"


rule train_specimen:
    input:
        tokenizer=ancient(f"{RESULTS}/training/tokenizer.json"),
        text=ancient(f"{RESULTS}/training/text.safetensors"),
        sources=ancient(f"{RESULTS}/training/sources.json"),
    output:
        model=directory(f"{RESULTS}/training/{{specimen}}/model"),
        losses=f"{RESULTS}/training/{{specimen}}/losses.parquet",
        facts=f"{RESULTS}/training/{{specimen}}/losses.json",
    log:
        f"{LOGS}/train_specimen/{{specimen}}.log",
    benchmark:
        f"{BENCHMARKS}/train_specimen/{{specimen}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(3000),
        runtime=720,
        gpu=GPU,
    params:
        training=lambda wildcards: steps.specimen_settings(CONFIG, wildcards.specimen),
        device=CONFIG.device,
        dtype=CONFIG.dtype,
    message:
        "Training specimen {wildcards.specimen}"
    script:
        "../scripts/train_specimen.py"


rule measure_specimens:
    input:
        models=expand(f"{RESULTS}/training/{{specimen}}/model", specimen=SPECIMENS),
        text=ancient(f"{RESULTS}/training/text.safetensors"),
        corpora=ancient(
            expand(
                f"{RESULTS}/corpora/{{corpus}}.parquet",
                corpus=TRAINING.get("corpora", []),
            )
        ),
    output:
        f"{RESULTS}/training/gates.json",
    log:
        f"{LOGS}/measure_specimens.log",
    benchmark:
        f"{BENCHMARKS}/measure_specimens.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(3000),
        runtime=30,
    params:
        names=SPECIMENS,
        training=TRAINING,
        code=code_hash("keepset.steps.shipping"),
    message:
        "Holding the specimens against their gates"
    script:
        "../scripts/measure_specimens.py"


# The curves of the specimens that the study uses, where their folders hold them.
SHIPPED_LOSSES = steps.shipped_losses(CONFIG)
LOSSES = {
    "training": expand(
        f"{RESULTS}/training/{{specimen}}/losses.parquet", specimen=SPECIMENS
    ),
    "figures": SHIPPED_LOSSES,
}
LOSSES = {folder: tables for folder, tables in LOSSES.items() if tables}


# The trainings of this run, and those of the specimens that the study came with.
for FOLDER, TABLES_OF_LOSSES in LOSSES.items():

    rule:
        name:
            f"draw_losses_{FOLDER}"
        input:
            TABLES_OF_LOSSES,
        output:
            png=report(
                f"{RESULTS}/{FOLDER}/loss_curve.png",
                caption="../report/loss_curve.rst",
                category="Training",
                labels={"figure": "loss curve"},
            ),
            svg=f"{RESULTS}/{FOLDER}/loss_curve.svg",
            pdf=f"{RESULTS}/{FOLDER}/loss_curve.pdf",
        log:
            f"{LOGS}/draw_losses_{FOLDER}.log",
        benchmark:
            f"{BENCHMARKS}/draw_losses_{FOLDER}.tsv"
        conda:
            "../../envs/study.yaml"
        resources:
            mem_mb=memory(1000),
            runtime=5,
        params:
            code=code_hash("keepset.report.figures.loss_curve"),
        message:
            f"Drawing the loss curves of {FOLDER}"
        script:
            "../scripts/draw_losses.py"


rule train_specimens:
    input:
        f"{RESULTS}/training/gates.json",
        f"{RESULTS}/training/loss_curve.png" if SPECIMENS else [],
