"""Script of rule `join_weights`, which writes the tables of a run that involve weights."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.weights.join import join

    weights = list(job.input.get("weights", []))
    join(
        settings=job.params.smoothquant,
        weights=Path(weights[0]).parent if weights else None,
        run_tables=Path(job.input.maxima).parent,
    )


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
