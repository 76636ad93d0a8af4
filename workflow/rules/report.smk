"""From tables to figures and the report."""


rule draw_figures:
    input:
        code=code("draw_figures.py"),
        tables=TABLES,
    output:
        [figure(path) for path in FIGURES],
        made=made("draw_figures"),
    log:
        f"{RESULTS}/logs/draw_figures.log",
    conda:
        "../../envs/report.yaml"
    message:
        "Figures"
    script:
        "../scripts/draw_figures.py"


rule render_report:
    input:
        code=code("render_report.py"),
        parts=PAGE_PARTS,
        tables=TABLES,
        weight_tables=WEIGHT_TABLES,
        ablations=ablations(),
        compared=compared,
        figures=FIGURES,
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        model=MODEL_RECORD,
        store=STORE_RECORD,
    output:
        page=report(REPORT, caption="../report/report.rst", category="Report"),
        findings=FINDINGS,
        made=made("render_report"),
    log:
        f"{RESULTS}/logs/render_report.log",
    conda:
        "../../envs/report.yaml"
    params:
        # Without what makes nothing stale.
        configuration=SETTINGS.model_dump(
            mode="json", exclude={"execution": True, "extraction": {"verify"}}
        ),
    message:
        "Report"
    script:
        "../scripts/render_report.py"
