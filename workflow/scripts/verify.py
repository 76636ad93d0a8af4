"""Script of rule `verify`, which compares the committed data of runs with their records."""

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline
    from outlier_atlas.verification import verify
    from outlier_atlas.verification.records import Records

    offline()
    damages = []
    for records in job.params.runs:
        try:
            verify(Records.of(records), job.threads)
        except ValueError as damage:
            damages.append(str(damage))
    if damages:
        raise ValueError("; ".join(damages))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
