"""Cache of the architecture of a recorded model, which a process describes once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas.checkpoint.source import load_config, locate
from outlier_atlas.roles.architecture import Architecture, describe

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def described(
    record: Mapping[str, Any], resources: Path, trust_remote_code: bool
) -> tuple[Path, PretrainedConfig, Architecture]:
    """Return the folder, the configuration and the architecture of a recorded model.

    No weight is read.

    Raises:
        ValueError: the folder no longer exists, or its model is no supported decoder.
    """
    folder = locate(record, resources)
    modified = (folder / "config.json").stat().st_mtime_ns
    return folder, *_described(folder, trust_remote_code, modified)


@lru_cache(maxsize=1)
def _described(
    folder: Path, trust_remote_code: bool, modified: int
) -> tuple[PretrainedConfig, Architecture]:
    config = load_config(folder, trust_remote_code)
    return config, describe(config, trust_remote_code)
