"""Rule `verify`: holds what a run has committed against its records."""

from pathlib import Path

from doorway import job


def main(job):
    from outlier_atlas.model.source import offline
    from outlier_atlas.verification import Records, verify

    offline()
    paths = {name: Path(path) for name, path in job.params.records.items()}
    manifests = [Path(path) for path in job.params.manifests]
    verify(Records(**paths, resources=Path("resources"), manifests=manifests), job.threads)


if __name__ == "__main__":
    job(main, snakemake)  # noqa: F821
