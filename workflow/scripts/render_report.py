"""Rule `render_report`: the page and the findings, from everything a run has."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.report.page import PageInputs, render

    page = Path(job.output.page)
    inputs = PageInputs(
        configuration=job.params.configuration,
        folder=page.parent,
        tables=Path(job.input.tables[0]).parent,
        ablations=bool(job.input.ablations),
        figures=Path(job.input.figures[0]).parent,
        tokens=Path(job.input.tokens),
        model_record=Path(job.input.model),
        tokens_record=Path(job.input.tokens_record),
        store_record=Path(job.input.store),
    )
    settings = job.params.configuration["report"]
    render(settings, inputs, page, Path(job.output.findings))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
