"""Rule `verify`: compares what a run has committed with its records."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline
    from outlier_atlas.store.run import Run
    from outlier_atlas.verification import Records, verify

    offline()
    paths = {name: Path(path) for name, path in job.params.records.items()}
    lists = {name: [Path(path) for path in paths] for name, paths in job.params.lists.items()}
    run = Run(
        paths["run"],
        paths["model"],
        Path("resources"),
        tokens_file=paths["tokens"],
        tokens_record=paths.get("tokens_record"),
        heldout_file=paths["heldout"],
        heldout_record=paths.get("heldout_record"),
    )
    records = Records(run, **lists, detected=paths["detected"], ablated=paths["ablated"])
    verify(records, job.threads)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
