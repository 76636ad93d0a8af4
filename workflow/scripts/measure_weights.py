"""Script of rule `measure_weights`, which reads a checkpoint once, without a forward pass."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline
    from outlier_atlas.weights.measure import measure

    offline()
    measure(
        model_record=Path(job.input.model),
        resources=Path("resources"),
        trust_remote_code=job.params.trust_remote_code,
        folder=Path(job.output[0]).parent,
        threads=job.threads,
    )


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
