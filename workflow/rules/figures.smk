# The figures of the paper, each as PNG, SVG and PDF, and in the HTML report.
# Inputs: significance/*.parquet. Outputs: figures/{figure}.png, .svg, .pdf.


FIGURE_TABLES = steps.figure_tables(CONFIG)


# One rule per figure, since a caption cannot be chosen by a wildcard.
for FIGURE, SOURCES in FIGURE_TABLES.items():

    rule:
        name:
            f"draw_{FIGURE}"
        input:
            [f"{RESULTS}/significance/{table}.parquet" for table in SOURCES],
        output:
            png=report(
                f"{RESULTS}/figures/{FIGURE}.png",
                caption=f"../report/{FIGURE}.rst",
                category="Figures",
                labels={"figure": FIGURE.replace("_", " ")},
            ),
            svg=f"{RESULTS}/figures/{FIGURE}.svg",
            pdf=f"{RESULTS}/figures/{FIGURE}.pdf",
        log:
            f"{LOGS}/draw_{FIGURE}.log",
        benchmark:
            f"{BENCHMARKS}/draw_{FIGURE}.tsv"
        conda:
            "../../envs/figures.yaml"
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


rule figures:
    input:
        expand(
            f"{RESULTS}/figures/{{figure}}.{{ending}}",
            figure=FIGURE_TABLES,
            ending=["png", "svg", "pdf"],
        ),
        f"{RESULTS}/figures/loss_curve.png" if SHIPPED_LOSSES else [],
