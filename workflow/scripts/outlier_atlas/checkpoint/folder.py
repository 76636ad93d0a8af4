"""What a checkpoint folder holds: its safetensors files, and a fingerprint of them."""

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
"""In the folder of a model that comes as GGUF: which tensors of its files make which weight."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TOKENIZER = (
    "*vocab*", "merges.txt", "*tokenizer*", "*.model", "*.spm", "*.tiktoken", "*.codes", "*.bpe",
    "*tekken*.json", "dict.txt", "*_maps.json", "emoji.json", "normalizer.json", "word_*.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template*",
)  # fmt: skip
"""Names of the files that a tokenizer may be made of; those of all tokenizers of transformers."""
NO_TOKENIZER = (
    "*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack",
    "*.onnx", "*.ot", "*.npz", "*.index.json", "*.md", "*.png", "*.jpg", "*.pdf", "LICENSE*",
    "README*", "NOTICE*", ".*",
)  # fmt: skip
"""Names of the files that no tokenizer reads: any other file may change its tokens."""
TEMPLATES = "additional_chat_templates"
"""Folder of a checkpoint that has further chat templates."""
LFS_POINTER = b"version https://git-lfs"
"""How a file begins that `git clone` leaves where Git LFS is not installed."""
LARGEST_HEADER = 100 * 2**20
"""As the safetensors library has it."""


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors or GGUF files that make up the model, sorted.

    Other files, such as `consolidated.safetensors`, do not belong to the model.

    Raises:
        ValueError: there are none, or only pickled ones, or one of them is missing.
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
            raise ValueError(f"{folder}: {INDEX} names {name!r}, which is not there")
    return files


def index_files(path: Path) -> list[str]:
    """Names of the files that an index names, sorted; each is in the folder of the index.

    Raises:
        ValueError: it is no index, or names something that is no safetensors file in its folder.
    """
    _refuse_irregular(path)
    try:
        files = sorted(set(json.loads(path.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a safetensors index; fetch it again") from error
    if not files:
        raise ValueError(f"{path}: names no file; fetch it again")
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{path}: names {name!r}, which is no file in its folder")
        if not name.endswith(".safetensors"):
            raise ValueError(f"{path}: names {name!r}, which is no safetensors file")
    return files


def choose_weights(where: str, names: Collection[str]) -> list[str]:
    """The safetensors file of a checkpoint without an index, from the names of its files.

    Raises:
        ValueError: there is none, or only pickled weights, which are never loaded.
    """
    if SINGLE in names:
        return [SINGLE]
    if INDEX in names:
        return []
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    if pickled:
        raise ValueError(
            f"{where}: it has only pickled weights ({pickled[0]}), which can run code when they "
            f"are loaded and are refused; convert them to safetensors"
        )
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if gguf:
        raise ValueError(f"{where}: it holds {gguf[0]}; name that file itself as model.source")
    raise ValueError(f"{where}: no {SINGLE} and no {INDEX}: it holds no weights")


def fingerprint(folder: Path, files: Sequence[str], code: bool) -> str:
    """sha256 over all that a forward pass depends on: `checked_files`, file by file.

    Every byte counts: a single changed weight is another model.
    """
    return fingerprint_of(sums_of(folder, checked_files(folder, files, code)))


def checked_files(folder: Path, files: Sequence[str], code: bool) -> list[str]:
    """Names of the files that a forward pass depends on: `config.json` and the weights.

    Args:
        files: the weights.
        code: whether Python code that comes with the checkpoint may run; then it counts, too.

    Raises:
        ValueError: a file is cut short or is no safetensors file.
    """
    gguf = is_gguf(files)
    for name in () if gguf else files:
        _check_header(folder / name)
    modules = sorted(path.name for path in folder.glob("*.py")) if code else []
    return ["config.json", *([GGUF_INDEX] if gguf else []), *modules, *files]


def is_gguf(files: Sequence[str]) -> bool:
    """Whether the files of a model are GGUF files."""
    return all(name.endswith(".gguf") for name in files)


def tokenizer_fingerprint(folder: Path) -> str:
    """sha256 over `tokenizer_sums`."""
    return fingerprint_of(tokenizer_sums(folder))


def tokenizer_sums(folder: Path) -> dict[str, str]:
    """sha256 of the files that the tokenizer and the chat template may be made of.

    A tokenizer's class decides which files it reads, so all count that are not known to be
    something else.
    """
    names = [name for name in regular_files(folder) if not _is_one_of(name, NO_TOKENIZER)]
    more = regular_files(folder / TEMPLATES) if (folder / TEMPLATES).is_dir() else []
    return sums_of(folder, [*names, *(f"{TEMPLATES}/{name}" for name in more)])


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a file that a tokenizer is made of."""
    return any(is_tokenizer_file(name) for name in regular_files(folder))


def is_tokenizer_file(name: str) -> bool:
    """Whether a file's name is that of a tokenizer's file."""
    return _is_one_of(name, TOKENIZER) and not _is_one_of(name, NO_TOKENIZER)


def regular_files(folder: Path) -> list[str]:
    """Names of the regular files in a folder, sorted; a FIFO or a link to nothing is none."""
    # `Path.is_file` raises where a link leads into a folder that may not be searched.
    return sorted(e.name for e in os.scandir(folder) if os.path.isfile(e.path))  # noqa: PTH113


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def sums_of(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """sha256 of each file; they are read side by side."""
    with ThreadPoolExecutor() as threads:
        sums = threads.map(sha256, [folder / name for name in names])
        return dict(zip(names, sums, strict=True))


def headers(folder: Path, files: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each tensor's name and its `dtype`, `shape` and `data_offsets`; no weight is read.

    Raises:
        ValueError: a file is cut short or is no safetensors file.
    """
    yield from ((key, tensor) for _, key, tensor in tensors_by_file(folder, files))


def tensors_by_file(
    folder: Path, files: Sequence[str]
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The same, each with the name of its file before it.

    Raises:
        ValueError: a file is cut short or is no safetensors file.
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
            raise ValueError(f"{folder / name}: no safetensors file; fetch it again") from error
        yield from ((name, key, header[key]) for key in header if key != "__metadata__")


def _gguf_tensors(folder: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The weights that a GGUF file's tensors make, by each file that has one of their tensors."""
    for name, weight in read_record(folder / GGUF_INDEX)["weights"].items():
        for file in sorted({blocks["file"] for blocks in weight["blocks"]}):
            own = [blocks for blocks in weight["blocks"] if blocks["file"] == file]
            size = sum(blocks["size"] for blocks in own)
            kinds = "+".join(sorted({blocks["type"] for blocks in own}))
            yield file, name, {"dtype": kinds, "shape": weight["shape"], "data_offsets": [0, size]}


def check_files(folder: Path, files: Sequence[str], layers: int) -> None:
    """Compare the headers of the weights with their files and the configuration; no weight is read.

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
    # The model is built to be described: a made-up number of layers would take all memory.
    if layers > tensors:
        raise ValueError(
            f"{folder / 'config.json'}: num_hidden_layers is {layers}, and the weights are "
            f"{tensors} tensors: the configuration is of another model"
        )


def _refuse_irregular(path: Path) -> None:
    """Only a regular file is read: a FIFO would wait for its writer forever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path}: no regular file (a FIFO, socket or device)")


def _check_header(path: Path) -> None:
    _refuse_irregular(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise ValueError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull`")
    header = int.from_bytes(start[:8], "little")
    if size < 8 or header > min(size - 8, LARGEST_HEADER):
        raise ValueError(f"{path}: cut short, or no safetensors file; fetch it again")
