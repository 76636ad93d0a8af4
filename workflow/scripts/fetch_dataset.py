"""Script of rule `fetch_dataset`, which fetches the needed documents of a hub dataset."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.data.prepare import fetch_dataset
    from outlier_atlas.settings.dataset import DatasetSettings

    fetch_dataset(
        settings=DatasetSettings.model_validate(job.params.dataset),
        model_record=Path(job.input.model),
        resources=Path("resources"),
        trust_remote_code=job.params.trust_remote_code,
        output=Path(job.output.documents),
        record=Path(job.output.record),
        before=job.params.before,
    )


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
