# The figures of the paper, each as PNG, SVG and PDF, and in the HTML report.
# Inputs: significance/*.parquet. Outputs: figures/{figure}.png, .svg, .pdf.


FIGURE_TABLES = {
    "decoupling": "correlation",
    "static_dynamic": "ratios",
    "scores": "ratios",
    "dial": "ratios",
    "capability": "capability",
}
if not TASKS:
    del FIGURE_TABLES["capability"]


wildcard_constraints:
    figure="|".join(FIGURE_TABLES),


rule draw_figure:
    input:
        lambda wildcards: f"{RESULTS}/significance/{FIGURE_TABLES[wildcards.figure]}.parquet",
    output:
        png=report(
            f"{RESULTS}/figures/{{figure}}.png",
            caption="../report/{figure}.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        svg=f"{RESULTS}/figures/{{figure}}.svg",
        pdf=f"{RESULTS}/figures/{{figure}}.pdf",
    log:
        f"{LOGS}/draw_figure/{{figure}}.log",
    benchmark:
        f"{BENCHMARKS}/draw_figure/{{figure}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        code=lambda wildcards: code_hash(f"keepset.figures.{wildcards.figure}"),
    message:
        "Drawing figure {wildcards.figure}"
    script:
        "../scripts/draw_figure.py"


rule figures:
    input:
        expand(
            f"{RESULTS}/figures/{{figure}}.{{ending}}",
            figure=FIGURE_TABLES,
            ending=["png", "svg", "pdf"],
        ),
