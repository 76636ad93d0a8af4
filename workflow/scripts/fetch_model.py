"""Rule `fetch_model`: has the model on this machine, and records what it is."""

from pathlib import Path

from doorway import job


def main(job):
    from outlier_atlas.model.source import fetch
    from outlier_atlas.settings.model import ModelSettings

    fetch(ModelSettings.model_validate(job.params.model), Path("resources"), Path(job.output[0]))


if __name__ == "__main__":
    job(main, snakemake)  # noqa: F821
