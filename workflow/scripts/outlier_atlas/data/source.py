"""Names and digests of a dataset's files; imports neither numpy nor pyarrow, for the Snakefile."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from outlier_atlas.checkpoint.source import DIGESTS
from outlier_atlas.digests import Digests
from outlier_atlas.files import canonical, fingerprint
from outlier_atlas.settings.dataset import DatasetSettings


def slug(settings: DatasetSettings, model: str) -> str:
    """Return a file name for the documents that one run fetches from a hub dataset.

    Args:
        model: name of the model, whose tokenizer decides how many documents are enough.
    """
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", settings.source).strip("-.")
    key = canonical([settings.model_dump(mode="json"), model])
    return f"{readable[:80]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def digests_of(settings: DatasetSettings, resources: Path, keep: bool = True) -> Digests:
    """Return the digests of a local dataset's files, by their names in its folder.

    Args:
        keep: whether the digests may be written to disk.
    """
    name = f"dataset-{fingerprint(settings.source)[:16]}.json"
    return Digests(resources / DIGESTS / name, keep)
