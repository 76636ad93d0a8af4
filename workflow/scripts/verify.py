"""Rule `verify`: compares what a run has committed with its records."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline
    from outlier_atlas.verification import Records, verify

    offline()
    paths = {name: Path(path) for name, path in job.params.records.items()}
    lists = {name: [Path(path) for path in paths] for name, paths in job.params.lists.items()}
    verify(Records(**paths, **lists, resources=Path("resources")), job.threads)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
