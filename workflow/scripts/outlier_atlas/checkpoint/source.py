"""Sources of a model: a built-in model, a GGUF file, a local folder or the hub.

A run identifies its model by a record: a small file with a fingerprint of the weights. `locate`
finds the folder of a recorded model without network access. transformers is imported inside
functions, because the Snakefile only needs names from this module.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas import builtin
from outlier_atlas.checkpoint.config_json import check_entries, check_folder, check_sizes
from outlier_atlas.checkpoint.folder import (
    check_files,
    checked_files,
    has_tokenizer,
    is_tokenizer_file,
    regular_files,
    tokenizer_sums,
    weight_files,
)
from outlier_atlas.checkpoint.hub import CONFIGURATION, FETCH_AGAIN
from outlier_atlas.checkpoint.quantization import check
from outlier_atlas.digests import Digests
from outlier_atlas.files import canonical, write_record
from outlier_atlas.files import fingerprint as fingerprint_of
from outlier_atlas.sanitize import gist
from outlier_atlas.settings.model import ModelSettings
from outlier_atlas.settings.source import local_path, source_kind

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from outlier_atlas.checkpoint.hub import HubModel

DIGESTS = "digests"
"""Subfolder of `resources` with the digests of models and datasets."""

ARCHITECTURES = "architectures"
"""Subfolder of `resources` with descriptions of architectures (`roles/cached_architecture.py`)."""

ENDINGS = (".safetensors", *CONFIGURATION, ".py")
"""Endings of the files that make up a checkpoint, except for tokenizer files."""


def slug(settings: ModelSettings) -> str:
    """Return a file name for a model: readable, and different for different models."""
    name = settings.source.removeprefix("builtin:").rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(name.split("/")[-2:])).strip("-.")
    key = [settings.source, settings.revision, settings.trust_remote_code]
    return f"{readable[:80] or 'model'}-{hashlib.sha256(canonical(key).encode()).hexdigest()[:8]}"


def files(folder: Path) -> list[Path]:
    """Return the paths of the files in a folder that make up a checkpoint."""
    names = regular_files(folder)
    return [folder / n for n in names if n.endswith(ENDINGS) or is_tokenizer_file(n)]


def gguf_file(settings: ModelSettings, resources: Path) -> Path | None:
    """Return the GGUF file of a built-in or GGUF model; None for other models."""
    kind = source_kind(settings.source)
    if kind == "builtin":
        return resources / builtin.path(settings.source)
    return local_path(settings.source) if kind == "gguf" else None


Check = Callable[["PretrainedConfig", bool], object]
"""Function that raises `ValueError` for a configuration whose model could not run.

Its second argument is the value of `trust_remote_code`.
"""


def fetch(
    settings: ModelSettings, resources: Path, record: Path, check: Check | None = None
) -> None:
    """Fetch a model and record it; this is the only step that needs the network.

    Args:
        settings: the `model` section of the configuration.
        resources: folder for fetched and derived files.
        record: path of the record to write.
        check: called with the configuration of a hub model before its weights are downloaded.

    Raises:
        ValueError: the model cannot be fetched or cannot be used; one sentence.
    """
    from outlier_atlas.checkpoint import gguf, hub

    kind = source_kind(settings.source)
    commit = None
    relative = None
    if kind == "hub":
        commit, folder = hub.download(
            settings.source, settings.revision, settings.trust_remote_code,
            lambda hub_model: _check_before(settings, hub_model, check),
        )  # fmt: skip
    elif kind == "local":
        folder = local_path(settings.source)
        relative = settings.source
    else:
        relative = f"models/{slug(settings)}"
        folder = resources / relative
        source = gguf_file(settings, resources)
        assert source is not None
        if kind == "builtin":
            builtin.check(settings.source, resources)
        gguf.describe(source, folder)
    digests = digests_of(record, resources)
    if kind == "hub":
        hub.check_cached(folder, weight_files(folder), digests)
    entries = _describe(settings, folder, digests)
    origin = {
        "kind": kind,
        "source": settings.source,
        "repository": settings.source if kind == "hub" else None,
        "commit": commit,
        "folder": relative,
    }
    write_record(record, entries | origin)


def digests_of(record: Path, resources: Path, keep: bool = True) -> Digests:
    """Return the digests of a recorded model's files, by their names in its folder.

    Args:
        record: path of the model's record.
        resources: folder that the record is relative to.
        keep: whether new digests may be written to disk.
    """
    return Digests(resources / DIGESTS / record.name, keep)


@contextmanager
def unfetched(settings: ModelSettings, check: Check) -> Iterator[tuple[Path, Path]]:
    """Provide a hub model as far as a plan needs it, without downloading its weights.

    Yields:
        A temporary record of the model and the folder that the record is relative to. Both are
        deleted when the block ends.

    Raises:
        ValueError: the model cannot be fetched or cannot be used; one sentence.
    """
    from outlier_atlas.checkpoint import hub

    trust = settings.trust_remote_code
    with hub.look_up(settings.source, settings.revision, trust) as hub_model:
        _check_before(settings, hub_model, check)
        for path in hub_model.folder.iterdir():
            if path.suffix in (".json", ".py"):
                shutil.copy(path, hub_model.headers)
        folder, record = hub_model.headers.parent, hub_model.headers.parent / "record.json"
        write_record(
            record,
            {
                "kind": "unfetched", "source": settings.source, "folder": hub_model.headers.name,
                "files": list(hub_model.files),
            },
        )  # fmt: skip
        yield record, folder


def _describe(settings: ModelSettings, folder: Path, digests: Digests) -> dict[str, Any]:
    """Return the entries of a model's record that do not depend on its source."""
    if not folder.is_dir():
        raise ValueError(f"model.source = {settings.source!r}: no such folder")
    files = weight_files(folder)
    config, quantization = _checked(settings, folder, folder, files)
    text = text_config(config)
    counted = checked_files(folder, files, settings.trust_remote_code)
    sums = digests.of({name: folder / name for name in counted})
    tokenizer = tokenizer_sums(folder)
    return {
        "fingerprint": fingerprint_of(sums | _rotation(text)),
        "sums": sums,
        "tokenizer": fingerprint_of(tokenizer),
        "tokenizer_sums": tokenizer,
        "model_type": config.model_type,
        "architecture": (config.architectures or ["unknown"])[0],
        "layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "weight_bytes": sum((folder / name).stat().st_size for name in files),
        "files": files,
        "quantization": quantization,
    }


def _rotation(text: PretrainedConfig) -> dict[str, str]:
    """Return an entry for the fingerprint of models whose rotary embedding depends on the length.

    Earlier versions kept the frequencies of one sequence for the next. The entry distinguishes the
    values computed now from the values that those versions stored.
    """
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    by_length = any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)
    return {"rotation": "of each sequence by itself"} if by_length else {}


def _checked(
    settings: ModelSettings, folder: Path, weights: Path, files: Sequence[str]
) -> tuple[PretrainedConfig, str | None]:
    """Read the configuration of a model and check it against the headers of the weights.

    Args:
        settings: the `model` section of the configuration.
        folder: folder of the model's configuration.
        weights: folder of the weight files, of which only the headers are read.
        files: names of the weight files.

    Returns:
        The configuration, and how the weights are quantized.
    """
    check_folder(folder)
    if not (folder / "config.json").is_file():
        exists = os.path.lexists(folder / "config.json")
        fault = "config.json is not a regular file" if exists else "the folder has no config.json"
        raise ValueError(f"model.source = {settings.source!r}: {fault}")
    config = load_config(folder, settings.trust_remote_code)
    check_files(weights, files, text_config(config).num_hidden_layers)
    return config, check(settings.source, config, weights, files)


def _check_before(settings: ModelSettings, hub_model: HubModel, check: Check | None) -> None:
    """Refuse a model that could not run, before gigabytes of weights are downloaded."""
    config, _ = _checked(settings, hub_model.folder, hub_model.headers, hub_model.files)
    if check:
        check(config, settings.trust_remote_code)


def locate(record: Mapping[str, Any], resources: Path) -> Path:
    """Return the folder of a recorded model, without network access.

    Raises:
        ValueError: the folder no longer exists.
    """
    if record["kind"] == "hub":
        from outlier_atlas.checkpoint.hub import cached_folder

        return cached_folder(record["repository"], record["commit"])
    local = record["kind"] == "local"
    folder = local_path(record["folder"]) if local else resources / record["folder"]
    if not (folder / "config.json").is_file():
        advice = "" if local else f"; {FETCH_AGAIN}"
        raise ValueError(f"{record['source']}: {folder} no longer exists{advice}")
    return folder


def load_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read the configuration of a checkpoint.

    Raises:
        ValueError: the configuration is damaged, has an unknown model type, needs code of the
            checkpoint, or describes no decoder.
    """
    from transformers import AutoConfig

    path = folder / "config.json"
    check_entries(path)
    try:
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # each architecture raises its own types of errors
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{path}: the model needs Python code that comes with it; if you trust that code, "
                f"set model.trust_remote_code: true"
            ) from error
        raise ValueError(
            f"{path}: not a configuration that transformers knows ({gist(error, folder)})"
        ) from error
    check_sizes(path, config, text_config(config))
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{path}: {config.model_type!r} is an encoder-decoder, not a decoder model; choose "
            f"another model"
        )
    return config


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the part of a configuration that describes the text decoder."""
    return config.get_text_config(decoder=True)


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """Read the tokenizer of a checkpoint; None if the checkpoint has none.

    Raises:
        ValueError: the checkpoint has a tokenizer that cannot be read.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        return None
    try:
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises bare `Exception`
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{folder}: the tokenizer needs Python code that comes with it; if you trust that "
                f"code, set model.trust_remote_code: true"
            ) from error
        message = gist(error, folder)
        path = _no_json(folder) or folder
        raise ValueError(
            f"{path}: its tokenizer cannot be read ({message}); fetch it again"
        ) from error


def _no_json(folder: Path) -> Path | None:
    """Return the first JSON file of a tokenizer that is not valid JSON; None if all are valid."""
    for name in filter(is_tokenizer_file, regular_files(folder)):
        if name.endswith(".json"):
            try:
                json.loads((folder / name).read_bytes())
            except (OSError, ValueError):
                return folder / name
    return None


def offline() -> None:
    """Disable network access of the hub's libraries in this process, from now on."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[variable] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # the module read the variable when it was imported
        vars(constants)["HF_HUB_OFFLINE"] = True
