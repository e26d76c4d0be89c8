# What leaving units out saves in time, on `snakemake --cores 1 benchmarks` only.
# Inputs: {model}/model.json, {model}/{corpus}/blocks.safetensors and activations.safetensors;
#         significance/ratios.parquet for the frontier.
# Outputs: kernels/shapes.parquet, {model}/kernels.parquet; kernels.parquet, .json and .csv;
#          figures/speedup and figures/frontier as .png, .svg, .pdf.

BENCHMARK = steps.benchmark_settings(CONFIG)
TIMED_MODELS = [model for model in MODELS if CONFIG.studies(model, "ffn")]
TIMED = CONFIG.benchmark.corpus if CONFIG.benchmark else "no-corpus"
SPEED_FIGURES = {
    "speedup": [f"{RESULTS}/kernels.parquet"],
    "frontier": [
        f"{RESULTS}/kernels.parquet",
        f"{RESULTS}/significance/ratios.parquet",
    ],
}


# Jobs that are timed run alone: `timer=1` is all that the default profile gives.
rule benchmark_kernels:
    output:
        f"{RESULTS}/kernels/shapes.parquet",
        f"{RESULTS}/kernels/shapes.json",
    log:
        f"{LOGS}/benchmark_kernels.log",
    benchmark:
        f"{BENCHMARKS}/benchmark_kernels.tsv"
    conda:
        "../../envs/study.yaml"
    threads: BENCHMARK.get("threads", 1)
    resources:
        mem_mb=memory(4000),
        runtime=30,
        gpu=GPU,
        timer=1,
    params:
        study=CONFIG.study,
        settings=BENCHMARK,
        device=CONFIG.device,
        kernels=CONFIG.kernels.model_dump(),
        code=code_hash("keepset.speed.blocks"),
    message:
        "Timing FFN blocks on random weights"
    script:
        "../scripts/benchmark_kernels.py"


rule benchmark_model:
    input:
        model=f"{RESULTS}/{{model}}/model.json",
        blocks=f"{RESULTS}/{{model}}/{TIMED}/blocks.safetensors",
        cache=f"{RESULTS}/{{model}}/{TIMED}/activations.safetensors",
    output:
        f"{RESULTS}/{{model}}/kernels.parquet",
        f"{RESULTS}/{{model}}/kernels.json",
    log:
        f"{LOGS}/benchmark_model/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/benchmark_model/{{model}}.tsv"
    conda:
        "../../envs/study.yaml"
    threads: BENCHMARK.get("threads", 1)
    resources:
        mem_mb=memory(4000),
        runtime=60,
        gpu=GPU,
        timer=1,
    params:
        run=lambda wildcards: steps.benchmark_run(CONFIG, wildcards.model),
        settings=BENCHMARK,
        identity=lambda wildcards: {"study": CONFIG.study, "model": wildcards.model},
        code=code_hash("keepset.speed.decoding"),
    message:
        "Timing {wildcards.model} decoding"
    script:
        "../scripts/benchmark_model.py"


rule join_benchmarks:
    input:
        f"{RESULTS}/kernels/shapes.parquet",
        expand(f"{RESULTS}/{{model}}/kernels.parquet", model=TIMED_MODELS),
    output:
        table=f"{RESULTS}/kernels.parquet",
        facts=f"{RESULTS}/kernels.json",
        csv=f"{RESULTS}/kernels.csv",
    log:
        f"{LOGS}/join_benchmarks.log",
    benchmark:
        f"{BENCHMARKS}/join_benchmarks.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=memory(500),
        runtime=5,
    params:
        code=code_hash("keepset.steps.benchmark"),
    message:
        "Joining the measured times"
    script:
        "../scripts/join_benchmarks.py"


for FIGURE, TABLES in SPEED_FIGURES.items():

    rule:
        name:
            f"draw_{FIGURE}"
        input:
            TABLES,
        output:
            png=report(
                f"{RESULTS}/figures/{FIGURE}.png",
                caption=f"../report/{FIGURE}.rst",
                category="Figures",
                labels={"figure": FIGURE},
            ),
            svg=f"{RESULTS}/figures/{FIGURE}.svg",
            pdf=f"{RESULTS}/figures/{FIGURE}.pdf",
        log:
            f"{LOGS}/draw_{FIGURE}.log",
        benchmark:
            f"{BENCHMARKS}/draw_{FIGURE}.tsv"
        conda:
            "../../envs/study.yaml"
        resources:
            mem_mb=memory(1000),
            runtime=5,
        params:
            figure=FIGURE,
            code=code_hash(f"keepset.report.figures.{FIGURE}"),
        message:
            f"Drawing figure {FIGURE}"
        script:
            "../scripts/draw_figure.py"


rule benchmarks:
    input:
        (
            expand(
                f"{RESULTS}/figures/{{figure}}.{{ending}}",
                figure=SPEED_FIGURES,
                ending=["png", "svg", "pdf"],
            )
            if BENCHMARK
            else []
        ),
