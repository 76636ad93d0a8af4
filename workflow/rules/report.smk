"""From tables to figures and the report."""


rule draw_figures:
    input:
        inputs=inputs("draw_figures", "draw_figures.py", {}),
        tables=TABLES,
        products=products_of("detect_outliers"),
    output:
        [figure(path) for path in FIGURES],
        products=products_of("draw_figures"),
    log:
        f"{RESULTS}/logs/draw_figures.log",
    conda:
        "../envs/report.yaml"
    message:
        "Figures"
    script:
        "../scripts/draw_figures.py"


rule render_report:
    input:
        inputs=with_layer_groups(report_inputs),
        tables=TABLES,
        weight_tables=WEIGHT_TABLES,
        ablations=ablations(),
        compared=refuse_incomparable,
        figures=FIGURES,
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        model=MODEL_RECORD,
        store=STORE_RECORD,
        products=[
            products_of(rule)
            for rule in [
                "tokenize_dataset",
                "detect_outliers",
                "join_weights",
                "draw_figures",
                *(["ablate"] if SETTINGS.ablation.sequences else []),
            ]
        ],
    output:
        # `update`: where a run to compare with is refused, the report that is there stays.
        page=report(update(REPORT), caption="../report/report.rst", category="Report"),
        findings=update(FINDINGS),
        products=products_of("render_report"),
    log:
        f"{RESULTS}/logs/render_report.log",
    conda:
        "../envs/report.yaml"
    params:
        configuration=with_layer_groups(reported_configuration),
    message:
        "Report"
    script:
        "../scripts/render_report.py"
