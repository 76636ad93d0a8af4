"""Rule `draw_figures`: the figures of a run, from its tables."""

from pathlib import Path

from doorway import job


def main(job):
    from outlier_atlas.report.figures import draw

    draw(Path(job.output[0]).parent, Path(job.input.tables[0]).parent)


if __name__ == "__main__":
    job(main, snakemake)  # noqa: F821
