"""Files of a checkpoint folder: weights, headers, tokenizer, and fingerprints of them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from outlier_atlas.files import fingerprint as fingerprint_of
from outlier_atlas.files import read_record, sha256
from outlier_atlas.sanitize import gist

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
GGUF_INDEX = "gguf.json"
"""File in the folder of a GGUF model that maps each weight to the GGUF tensors that store it."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of pickled weights, which are never loaded."""
TOKENIZER = (
    "*vocab*", "merges.txt", "*tokenizer*", "*.model", "*.spm", "*.tiktoken", "*.codes", "*.bpe",
    "*tekken*.json", "dict.txt", "*_maps.json", "emoji.json", "normalizer.json", "word_*.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template*",
)  # fmt: skip
"""Patterns of the files that a tokenizer of transformers may read."""
NO_TOKENIZER = (
    "*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack",
    "*.onnx", "*.ot", "*.npz", "*.index.json", "*.md", "*.png", "*.jpg", "*.pdf", "LICENSE*",
    "README*", "NOTICE*", ".*",
)  # fmt: skip
"""Patterns of the files that no tokenizer reads. Any other file may change the tokens."""
TEMPLATES = "additional_chat_templates"
"""Folder of a checkpoint that contains further chat templates."""
LFS_POINTER = b"version https://git-lfs"
"""First bytes of the pointer that `git clone` leaves in place of a file without Git LFS."""
LARGEST_HEADER = 100 * 2**20
"""Bytes of the largest header that the safetensors library accepts."""


def weight_files(folder: Path) -> list[str]:
    """Return the names of the safetensors or GGUF files that make up the model, sorted.

    Other files, such as `consolidated.safetensors`, do not belong to the model.

    Raises:
        ValueError: the folder has no weights or only pickled ones, or a weight file is missing.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if GGUF_INDEX in names:
        return sorted({file for file, _, _ in _gguf_tensors(folder)})
    single = choose_weights(str(folder), names)
    if single:
        return single
    files = index_files(folder / INDEX)
    for name in files:
        if name not in names:
            raise ValueError(f"{folder}: {INDEX} lists {name!r}, which is missing; fetch it again")
    return files


def index_files(path: Path) -> list[str]:
    """Return the names of the files that a safetensors index lists, sorted.

    Raises:
        ValueError: the file is no index, or lists something other than a safetensors file in its
            own folder.
    """
    _refuse_irregular(path)
    try:
        files = sorted(set(json.loads(path.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a safetensors index; fetch it again") from error
    if not files:
        raise ValueError(f"{path}: lists no file; fetch it again")
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{path}: lists {name!r}, which is not a file in its folder")
        if not name.endswith(".safetensors"):
            raise ValueError(f"{path}: lists {name!r}, which is not a safetensors file")
    return files


def choose_weights(where: str, names: Collection[str]) -> list[str]:
    """Return the safetensors file of a checkpoint without an index, as a list of one name.

    Args:
        where: the checkpoint, for messages.
        names: names of its files.

    Returns:
        An empty list if the checkpoint has an index.

    Raises:
        ValueError: the checkpoint has no weights, or only pickled weights, which are never loaded.
    """
    if SINGLE in names:
        return [SINGLE]
    if INDEX in names:
        return []
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    if pickled:
        raise ValueError(
            f"{where}: only pickled weights ({pickled[0]}), which can run code when they are "
            f"loaded and are refused; convert them to safetensors"
        )
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if gguf:
        raise ValueError(f"{where}: a folder with {gguf[0]}; set model.source to that file")
    raise ValueError(f"{where}: no weights: neither {SINGLE} nor {INDEX} exists")


def fingerprint(folder: Path, files: Sequence[str], code: bool) -> str:
    """Return the sha256 over all that a forward pass depends on: `checked_files`, file by file.

    Every byte counts: a single changed weight makes another model.
    """
    return fingerprint_of(sha256_by_name(folder, checked_files(folder, files, code)))


def checked_files(folder: Path, files: Sequence[str], code: bool) -> list[str]:
    """Return the names of the files that a forward pass depends on: `config.json` and the weights.

    Args:
        folder: folder of the checkpoint.
        files: names of the weight files.
        code: whether Python code of the checkpoint may run. If so, its modules are included.

    Raises:
        ValueError: a file is truncated or is no safetensors file.
    """
    gguf = is_gguf(files)
    for name in () if gguf else files:
        _check_header(folder / name)
    modules = sorted(path.name for path in folder.glob("*.py")) if code else []
    return ["config.json", *([GGUF_INDEX] if gguf else []), *modules, *files]


def is_gguf(files: Sequence[str]) -> bool:
    """Return whether the files of a model are GGUF files."""
    return all(name.endswith(".gguf") for name in files)


def tokenizer_fingerprint(folder: Path) -> str:
    """Return the sha256 over `tokenizer_sums`."""
    return fingerprint_of(tokenizer_sums(folder))


def tokenizer_sums(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file that the tokenizer and the chat template may be read from.

    The class of a tokenizer decides which files it reads. So every file is included that is not
    known to be something else.
    """
    names = [name for name in regular_files(folder) if not _is_one_of(name, NO_TOKENIZER)]
    templates = regular_files(folder / TEMPLATES) if (folder / TEMPLATES).is_dir() else []
    return sha256_by_name(folder, [*names, *(f"{TEMPLATES}/{name}" for name in templates)])


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has a file that a tokenizer is read from."""
    return any(is_tokenizer_file(name) for name in regular_files(folder))


def is_tokenizer_file(name: str) -> bool:
    """Return whether a file name is that of a tokenizer file."""
    return _is_one_of(name, TOKENIZER) and not _is_one_of(name, NO_TOKENIZER)


def regular_files(folder: Path) -> list[str]:
    """Return the names of the regular files in a folder, sorted; no FIFOs and no dead links."""
    # `Path.is_file` raises if a link leads into a folder without permission to search.
    return sorted(e.name for e in os.scandir(folder) if os.path.isfile(e.path))  # noqa: PTH113


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def sha256_by_name(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the sha256 of each file by name; the files are read in parallel."""
    with ThreadPoolExecutor() as threads:
        sums = threads.map(sha256, [folder / name for name in names])
        return dict(zip(names, sums, strict=True))


def headers(folder: Path, files: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each tensor's name and its `dtype`, `shape` and `data_offsets`; no weight is read.

    Raises:
        ValueError: a file is truncated or is no safetensors file.
    """
    yield from ((key, tensor) for _, key, tensor in tensors_by_file(folder, files))


def tensors_by_file(
    folder: Path, files: Sequence[str]
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield each tensor's file, name and header entry; see `headers`.

    Raises:
        ValueError: a file is truncated or is no safetensors file.
    """
    if is_gguf(files):
        yield from (entry for entry in _gguf_tensors(folder) if entry[0] in files)
        return
    for name in files:
        _check_header(folder / name)
        with (folder / name).open("rb") as file:
            text = file.read(int.from_bytes(file.read(8), "little"))
        try:
            header = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{folder / name}: not a safetensors file; fetch it again") from error
        yield from ((name, key, header[key]) for key in header if key != "__metadata__")


def _gguf_tensors(folder: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield each weight of a GGUF model, once for every file that stores some of its tensors."""
    for name, weight in read_record(folder / GGUF_INDEX)["weights"].items():
        for file in sorted({blocks["file"] for blocks in weight["blocks"]}):
            file_blocks = [blocks for blocks in weight["blocks"] if blocks["file"] == file]
            size = sum(blocks["size"] for blocks in file_blocks)
            kinds = "+".join(sorted({blocks["type"] for blocks in file_blocks}))
            yield file, name, {"dtype": kinds, "shape": weight["shape"], "data_offsets": [0, size]}


def check_files(folder: Path, files: Sequence[str], layers: int) -> None:
    """Compare the headers of the weights with their files and the configuration; no weight is read.

    Args:
        folder: folder of the checkpoint.
        files: names of the weight files.
        layers: number of layers that the configuration states.

    Raises:
        ValueError: a file is damaged, or there are fewer tensors than the model has layers.
    """
    from safetensors import SafetensorError, safe_open

    tensors = 0
    if is_gguf(files):
        tensors = len({name for name, _ in headers(folder, files)})
    for name in () if is_gguf(files) else files:
        _check_header(folder / name)
        try:
            with safe_open(folder / name, framework="np") as file:
                tensors += len(file.keys())
        except SafetensorError as error:
            raise ValueError(
                f"{folder / name}: damaged safetensors file ({gist(error)}); fetch it again"
            ) from error
    # The model is built on the meta device next: an absurd number of layers would take all memory.
    if layers > tensors:
        raise ValueError(
            f"{folder / 'config.json'}: num_hidden_layers is {layers}, but the checkpoint has only "
            f"{tensors} tensors; take the config.json that belongs to it"
        )


def _refuse_irregular(path: Path) -> None:
    """Refuse to read anything but a regular file: a FIFO would block until it is written to."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path}: a FIFO, socket or device, not a regular file")


def _check_header(path: Path) -> None:
    _refuse_irregular(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise ValueError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull`")
    header = int.from_bytes(start[:8], "little")
    if size < 8 or header > min(size - 8, LARGEST_HEADER):
        raise ValueError(f"{path}: truncated, or not a safetensors file; fetch it again")
