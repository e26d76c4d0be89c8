# The figures, each as PNG, SVG and PDF, and in the HTML report.
# Inputs: significance/*.parquet; of speed, kernels.parquet; of trainings, losses.parquet.
# Outputs: figures/{figure}.png, .svg, .pdf; training/loss_curve.png, .svg, .pdf.

# The loss curves of the specimens that the study came with, where their folders hold them, and of
# those that are trained here.
SHIPPED_LOSSES = outputs.shipped_losses(CONFIG)
LOSSES = {
    "training": expand(
        f"{RESULTS}/training/{{specimen}}/losses.parquet", specimen=SPECIMENS
    ),
    "figures": SHIPPED_LOSSES,
}
# Rule -> figure, the folder that it is written to, what it is drawn from, the rule's message.
DRAWINGS = {
    f"draw_{figure.name}": (
        figure,
        "figures",
        results(f"{table}.parquet" for table in figure.tables),
        f"Drawing figure {figure.name}",
    )
    for figure in drawn(CONFIG) + drawn(CONFIG, "benchmarks") + drawn(CONFIG, "slim")
} | {
    f"draw_losses_{folder}": (
        FIGURES["loss_curve"],
        folder,
        tables,
        f"Drawing the loss curves of {folder}",
    )
    for folder, tables in LOSSES.items()
    if tables
}
# What caption.rst shows. The ledger is explained where its figure is.
CAPTIONS = {name: drawing[0].caption(CONFIG) for name, drawing in DRAWINGS.items()}
config["captions"] = {**CAPTIONS, "judge_claims": CAPTIONS["draw_claims"]}


# One rule per figure, since neither inputs nor a caption can be chosen by a wildcard.
for RULE, (FIGURE, FOLDER_OF_FIGURE, SOURCES, MESSAGE) in DRAWINGS.items():

    rule:
        name:
            RULE
        input:
            SOURCES,
        output:
            report(
                f"{RESULTS}/{FOLDER_OF_FIGURE}/{FIGURE.name}.png",
                caption="../report/caption.rst",
                category="Training" if FIGURE.target == "training" else "Figures",
                labels={"figure": FIGURE.name.replace("_", " ")},
            ),
            f"{RESULTS}/{FOLDER_OF_FIGURE}/{FIGURE.name}.svg",
            f"{RESULTS}/{FOLDER_OF_FIGURE}/{FIGURE.name}.pdf",
        log:
            f"{LOGS}/{RULE}.log",
        conda:
            "../../envs/figures.yaml"
        resources:
            mem_mb=memory(1000),
            runtime=5,
        params:
            **given(RULE),
        message:
            MESSAGE
        script:
            "../scripts/run_step.py"


rule figures:
    input:
        expand(
            f"{RESULTS}/figures/{{figure}}.{{ending}}",
            figure=[figure.name for figure in drawn(CONFIG)],
            ending=["png", "svg", "pdf"],
        ),
        f"{RESULTS}/figures/loss_curve.png" if SHIPPED_LOSSES else [],
