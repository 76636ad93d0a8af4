"""Where a model comes from: a built-in, a GGUF file, a local folder or the hub.

Whatever it is, the run knows it by its record: a small file with a fingerprint of the weights,
from which `locate` finds the folder again, offline. transformers is imported where it is needed:
the Snakefile asks for names only.
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
from outlier_atlas.checkpoint.config_json import check_folder, check_sizes, check_stated
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

    from outlier_atlas.checkpoint.hub import Known

DIGESTS = "digests"
"""Folder of the digests of models and datasets, in `resources`."""

ENDINGS = (".safetensors", *CONFIGURATION, ".py")
"""Endings of the files that a checkpoint is made of, its tokenizer's apart."""


def slug(settings: ModelSettings) -> str:
    """A file name for a model: readable, and different for different models."""
    name = settings.source.removeprefix("builtin:").rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(name.split("/")[-2:])).strip("-.")
    key = [settings.source, settings.revision, settings.trust_remote_code]
    return f"{readable[:80] or 'model'}-{hashlib.sha256(canonical(key).encode()).hexdigest()[:8]}"


def files(folder: Path) -> list[Path]:
    """The files in a folder that a checkpoint is made of."""
    names = regular_files(folder)
    return [folder / n for n in names if n.endswith(ENDINGS) or is_tokenizer_file(n)]


def gguf_file(settings: ModelSettings, resources: Path) -> Path | None:
    """The GGUF file of a built-in or GGUF model; None for other models."""
    kind = source_kind(settings.source)
    if kind == "builtin":
        return resources / builtin.path(settings.source)
    return local_path(settings.source) if kind == "gguf" else None


Check = Callable[["PretrainedConfig", bool], object]
"""Raises `ValueError` for a configuration whose model could not run; the flag is that of
`trust_remote_code`."""


def fetch(
    settings: ModelSettings, resources: Path, record: Path, check: Check | None = None
) -> None:
    """Have a model on this machine, and record what it is; the only step that needs the network.

    Args:
        settings: the `model` section of the configuration.
        resources: folder for what is fetched or made of it.
        record: the record to write.
        check: of a model of the hub, before gigabytes of weights are fetched.

    Raises:
        ValueError: the model cannot be had or cannot be used; one sentence.
    """
    from outlier_atlas.checkpoint import gguf, hub

    kind = source_kind(settings.source)
    commit = None
    relative = None
    if kind == "hub":
        commit, folder = hub.download(
            settings.source, settings.revision, settings.trust_remote_code,
            lambda known: _check_before(settings, known, check),
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
    described = _describe(settings, folder, digests)
    where = {
        "kind": kind,
        "source": settings.source,
        "repository": settings.source if kind == "hub" else None,
        "commit": commit,
        "folder": relative,
    }
    write_record(record, described | where)


def digests_of(record: Path, resources: Path, keep: bool = True) -> Digests:
    """The digests of a recorded model's files, by their names in its folder.

    Args:
        keep: whether they may be written down.
    """
    return Digests(resources / DIGESTS / record.name, keep)


@contextmanager
def unfetched(settings: ModelSettings, check: Check) -> Iterator[tuple[Path, Path]]:
    """A model of the hub as far as a plan needs it: its weights are not fetched.

    Returns:
        A record of it and the folder that the record is relative to, until the block ends.

    Raises:
        ValueError: the model cannot be had or cannot be used; one sentence.
    """
    from outlier_atlas.checkpoint import hub

    trust = settings.trust_remote_code
    with hub.look_up(settings.source, settings.revision, trust) as known:
        _check_before(settings, known, check)
        for path in known.folder.iterdir():
            if path.suffix in (".json", ".py"):
                shutil.copy(path, known.headers)
        folder, record = known.headers.parent, known.headers.parent / "record.json"
        write_record(
            record,
            {
                "kind": "unfetched", "source": settings.source, "folder": known.headers.name,
                "files": list(known.files),
            },
        )  # fmt: skip
        yield record, folder


def _describe(settings: ModelSettings, folder: Path, digests: Digests) -> dict[str, Any]:
    """What a model is."""
    if not folder.is_dir():
        raise ValueError(f"model.source = {settings.source!r}: no such folder")
    files = weight_files(folder)
    config, quantization = _checked(settings, folder, folder, files)
    text = text_config(config)
    counted = checked_files(folder, files, settings.trust_remote_code)
    sums = digests.of({name: folder / name for name in counted})
    of_tokenizer = tokenizer_sums(folder)
    return {
        "fingerprint": fingerprint_of(sums | _rotation(text)),
        "sums": sums,
        "tokenizer": fingerprint_of(of_tokenizer),
        "tokenizer_sums": of_tokenizer,
        "model_type": config.model_type,
        "architecture": (config.architectures or ["unknown"])[0],
        "layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "weight_bytes": sum((folder / name).stat().st_size for name in files),
        "files": files,
        "quantization": quantization,
    }


def _rotation(text: PretrainedConfig) -> dict[str, str]:
    """What tells the values of a model whose rotation depends on the length of the sequence from
    those that earlier versions computed, which kept it from one sequence to the next."""
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    of_length = any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)
    return {"rotation": "of each sequence by itself"} if of_length else {}


def _checked(
    settings: ModelSettings, folder: Path, weights: Path, files: Sequence[str]
) -> tuple[PretrainedConfig, str | None]:
    """The configuration in a folder, and how the weights in another are quantized, of whose files
    only the headers are read."""
    check_folder(folder)
    if not (folder / "config.json").is_file():
        there = os.path.lexists(folder / "config.json")
        fault = "its config.json is no regular file" if there else "the folder has no config.json"
        raise ValueError(f"model.source = {settings.source!r}: {fault}")
    config = load_config(folder, settings.trust_remote_code)
    check_files(weights, files, text_config(config).num_hidden_layers)
    return config, check(settings.source, config, weights, files)


def _check_before(settings: ModelSettings, known: Known, check: Check | None) -> None:
    """Refuse what could not run, before gigabytes of weights are fetched."""
    config, _ = _checked(settings, known.folder, known.headers, known.files)
    if check:
        check(config, settings.trust_remote_code)


def locate(record: Mapping[str, Any], resources: Path) -> Path:
    """The folder of a recorded model, without asking the network.

    Raises:
        ValueError: it is not there any more.
    """
    if record["kind"] == "hub":
        from outlier_atlas.checkpoint.hub import cached

        return cached(record["repository"], record["commit"])
    local = record["kind"] == "local"
    folder = local_path(record["folder"]) if local else resources / record["folder"]
    if not (folder / "config.json").is_file():
        advice = "" if local else f"; {FETCH_AGAIN}"
        raise ValueError(f"{record['source']}: {folder} is not there any more{advice}")
    return folder


def load_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a checkpoint.

    Raises:
        ValueError: it is damaged, of an unknown kind, needs code that comes with it, or describes
            no decoder.
    """
    from transformers import AutoConfig

    path = folder / "config.json"
    check_stated(path)
    try:
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # every architecture checks its own configuration in its own way
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
            f"{path}: {config.model_type!r} is an encoder-decoder, not a decoder model"
        )
    return config


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a configuration that describes the text decoder."""
    return config.get_text_config(decoder=True)


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint; None where it comes without one.

    Raises:
        ValueError: it is there and cannot be read.
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
        said = gist(error, folder)
        where = _no_json(folder) or folder
        raise ValueError(
            f"{where}: its tokenizer cannot be read ({said}); fetch it again"
        ) from error


def _no_json(folder: Path) -> Path | None:
    """The first file of a tokenizer that should be JSON and is none."""
    for name in filter(is_tokenizer_file, regular_files(folder)):
        if name.endswith(".json"):
            try:
                json.loads((folder / name).read_bytes())
            except (OSError, ValueError):
                return folder / name
    return None


def offline() -> None:
    """Keep the hub's libraries off the network, from here on, in this process."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[variable] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it read the variable when it was imported
        vars(constants)["HF_HUB_OFFLINE"] = True
