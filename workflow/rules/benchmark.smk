# What leaving units out saves in time, on `snakemake --cores 1 benchmarks` only.
# Inputs: {model}/model.json, {model}/{corpus}/blocks.safetensors and activations.safetensors;
#         significance/ratios.parquet for the frontier.
# Outputs: kernels/shapes.parquet, {model}/kernels.parquet; kernels.parquet, .json and .csv;
#          figures/speedup and figures/frontier as .png, .svg, .pdf.

TIMED_MODELS = [model for model in MODELS if CONFIG.studies(model, "ffn")]
TIMED = CONFIG.benchmark.corpus if CONFIG.benchmark else "no-corpus"
TIMED_THREADS = CONFIG.benchmark.threads if CONFIG.benchmark else 1


# Jobs that are timed run alone: `timer=1` is all that the default profile gives.
rule benchmark_kernels:
    output:
        f"{RESULTS}/kernels/shapes.parquet",
        f"{RESULTS}/kernels/shapes.json",
    log:
        f"{LOGS}/benchmark_kernels.log",
    conda:
        "../../envs/study.yaml"
    threads: TIMED_THREADS
    resources:
        mem_mb=memory(4000),
        runtime=30,
        gpu=GPU,
        timer=1,
    params:
        **given("benchmark_kernels"),
    message:
        "Timing FFN blocks on random weights"
    script:
        "../scripts/run_step.py"


use rule benchmark_kernels as benchmark_model with:
    input:
        model=MODEL,
        blocks=f"{RESULTS}/{{model}}/{TIMED}/blocks.safetensors",
        cache=f"{RESULTS}/{{model}}/{TIMED}/activations.safetensors",
    output:
        f"{RESULTS}/{{model}}/kernels.parquet",
        f"{RESULTS}/{{model}}/kernels.json",
    log:
        f"{LOGS}/benchmark_model/{{model}}.log",
    resources:
        mem_mb=memory(4000),
        runtime=60,
        gpu=GPU,
        timer=1,
    params:
        **given("benchmark_model"),
    message:
        "Timing {wildcards.model} decoding"


use rule join_perplexity as join_benchmarks with:
    input:
        f"{RESULTS}/kernels/shapes.parquet",
        expand(f"{RESULTS}/{{model}}/kernels.parquet", model=TIMED_MODELS),
    output:
        table=f"{RESULTS}/kernels.parquet",
        facts=f"{RESULTS}/kernels.json",
        csv=f"{RESULTS}/kernels.csv",
    log:
        f"{LOGS}/join_benchmarks.log",
    params:
        **given("join_benchmarks"),
    message:
        "Joining the measured times"


rule benchmarks:
    input:
        expand(
            f"{RESULTS}/figures/{{figure}}.{{ending}}",
            figure=[figure.name for figure in drawn(CONFIG, "benchmarks")],
            ending=["png", "svg", "pdf"],
        ),
