"""Script of rule `fetch_model`, which fetches a model and records its description."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import fetch
    from outlier_atlas.roles.architecture import describe
    from outlier_atlas.settings.model import ModelSettings

    settings = ModelSettings.model_validate(job.params.model)
    fetch(settings, Path("resources"), Path(job.output[0]), describe)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
