"""Rule `detect_outliers`: from the store to the tables, in one pass."""

from pathlib import Path

from doorway import job
from outlier_atlas.detection.run import detect


def main(job):
    detect(
        settings=job.params.detection,
        run=Path(job.input.store).parents[1],
        store_record=Path(job.input.store),
        tokens=Path(job.input.tokens),
        tokens_record=Path(job.input.tokens_record),
        model_record=Path(job.input.model),
        folder=Path(job.output[0]).parent,
        threads=job.threads,
    )


if __name__ == "__main__":
    job(main, snakemake)  # noqa: F821
