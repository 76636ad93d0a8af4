"""Script of rule `detect_outliers`, which computes the tables in one pass over the store."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline
    from outlier_atlas.detection.run import detect
    from run_of_job import run_of

    offline()
    detect(
        settings=job.params.detection,
        run=run_of(job),
        folder=Path(job.output[0]).parent,
        threads=job.threads,
        manifests=[Path(path) for path in job.input.manifests],
        trust_remote_code=job.params.trust_remote_code,
    )


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
