"""From tables to figures and the report."""


def figures_of(run):
    """The files of a run's figures, without folder: what is measured decides which there are."""
    settings = run.settings
    return tuple(
        figures.names(
            settings.extraction.sites, settings.detection.quantization_error.sites
        )
    )


# Outputs of a rule have no function of the run: so a rule for all runs with the same figures.
for index, names in enumerate(dict.fromkeys(map(figures_of, RUNS.values()))):

    alike = [run.name for run in RUNS.values() if figures_of(run) == names]

    rule:
        name:
            f"draw_figures{index or ''}"
        input:
            inputs=of_run(inputs("draw_figures", "draw_figures.py", lambda run: {})),
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


def compared_files(run):
    """The contents of what the report shows of another run."""
    other = run.compared
    if other is None:
        return {}
    return Digests().of({file: other / file for file in compared_runs.FILES})


def refuse_incomparable(run):
    """No file: refuses a run that is not there; asked only where the report is wanted."""
    if run.compared:
        # Snakemake would list all files of the other run, and not say what to do.
        with one_line():
            compared_runs.refuse_missing(run.compared)
    return []


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
        figures=of_run(
            lambda run: [run.path(f"figures/{name}") for name in figures_of(run)]
        ),
        tokens=TOKENS,
        tokens_record=TOKENS_RECORD,
        model=of_run(lambda run: run.model.record),
        store=STORE_RECORD,
        products=of_run(
            lambda run: run.products(
                "create_store",
                "detect_outliers",
                "join_weights",
                "draw_figures",
                *(["ablate"] if run.ablates else []),
            )
        ),
    output:
        # `update`: where a run to compare with is refused, the report that is there stays.
        page=report(update(REPORT), caption="../report/report.rst", category="Report"),
        findings=update(FINDINGS),
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
