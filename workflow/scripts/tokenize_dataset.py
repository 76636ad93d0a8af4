"""Script of rule `tokenize_dataset`, which turns text into sequences of tokens."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline
    from outlier_atlas.compat.without_torch import hide_torch
    from outlier_atlas.data.prepare import tokenize_dataset
    from outlier_atlas.settings.dataset import DatasetSettings
    from outlier_atlas.settings.source import source_kind

    offline()
    if not job.params.trust_remote_code:  # code of a checkpoint may import torch
        hide_torch()
    settings = DatasetSettings.model_validate(job.params.dataset)
    hub = source_kind(settings.source) == "hub"
    tokenize_dataset(
        settings=settings,
        model_record=Path(job.input.model),
        resources=Path("resources"),
        trust_remote_code=job.params.trust_remote_code,
        fetched=(Path(job.input.dataset[0]), Path(job.input.dataset[1])) if hub else None,
        tokens=Path(job.output.tokens),
        record=Path(job.output.record),
        before=job.params.before,
    )


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
