"""Script of rule `draw_figures`, which draws the figures of a run from its tables."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.phases import note
    from outlier_atlas.plan.job_sizes import of_figures
    from outlier_atlas.report.figures import draw

    note(sizes=of_figures(len(job.output) - 1))
    draw(Path(job.output[0]).parent, Path(job.input.tables[0]).parent)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
