"""A recorded model, described; once in a process, however many ask."""

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
    """The folder of a recorded model, its configuration and its architecture; no weight is read.

    Raises:
        ValueError: it is not there any more, or is no decoder that is understood.
    """
    folder = locate(record, resources)
    changed = (folder / "config.json").stat().st_mtime_ns
    return folder, *_described(folder, trust_remote_code, changed)


@lru_cache(maxsize=1)
def _described(
    folder: Path, trust_remote_code: bool, changed: int
) -> tuple[PretrainedConfig, Architecture]:
    config = load_config(folder, trust_remote_code)
    return config, describe(config, trust_remote_code)
