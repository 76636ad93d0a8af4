"""Rule `fetch_model`: has the model on this machine, and records what it is."""

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
