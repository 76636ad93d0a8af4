"""The report and, on demand, static figures, from the tables."""


# The report draws its figures itself. Files for slides and papers are drawn only if asked for.
rule figures:
    input:
        lambda wildcards: [
            file for run in RUNS.values() for file in run.products("draw_figures")
        ],
    localrule: True


# Outputs cannot be functions of the run, so runs with the same figures share a rule.
for index, names in enumerate(dict.fromkeys(map(figures_of, RUNS.values()))):

    alike = [run.name for run in RUNS.values() if figures_of(run) == names]

    rule:
        name:
            f"draw_figures{index or ''}"
        input:
            inputs=of_run(draw_figures_inputs),
            tables=TABLES,
            products=products_of("detect_outliers"),
        output:
            [figure(f"{RESULTS}/figures/{name}") for name in names],
            products=products_of("draw_figures"),
        log:
            f"{RESULTS}/logs/draw_figures.log",
        wildcard_constraints:
            run=one_of(alike),
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
        ablations=of_run(
            lambda run: (
                [run.path(f"tables/{tables.ABLATIONS.name}.parquet")]
                if run.ablates
                else []
            )
        ),
        compared=of_run(refuse_incomparable),
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        model=of_run(lambda run: run.model.record),
        store=STORE_RECORD,
        products=of_run(
            lambda run: run.products(
                "create_store",
                "detect_outliers",
                "join_weights",
                *(["ablate"] if run.ablates else []),
            )
        ),
    output:
        # `update` keeps an existing report if the run to compare with is refused.
        page=report(update(REPORT), caption="../report/report.rst", category="Report"),
        findings=update(FINDINGS),
        times=[update(TIMES[0]), table(update(TIMES[1]))],
        products=products_of("render_report"),
    log:
        f"{RESULTS}/logs/render_report.log",
    wildcard_constraints:
        **CONSTRAINTS,
    conda:
        "../envs/report.yaml"
    params:
        configuration=with_layer_groups(reported_configuration),
    message:
        "Report"
    script:
        "../scripts/render_report.py"
