"""Rule `detect_outliers`: from the store to the tables, in one pass."""

from pathlib import Path

from doorway import job


def main(job):
    from outlier_atlas.detection.run import detect
    from outlier_atlas.model.source import offline

    offline()
    detect(
        settings=job.params.detection,
        run=Path(job.input.store).parents[1],
        store_record=Path(job.input.store),
        tokens=Path(job.input.tokens),
        model_record=Path(job.input.model),
        folder=Path(job.output[0]).parent,
        threads=job.threads,
        manifests=[Path(path) for path in job.input.manifests],
        resources=Path("resources"),
        trust_remote_code=job.params.trust_remote_code,
    )


if __name__ == "__main__":
    job(main, snakemake)  # noqa: F821
