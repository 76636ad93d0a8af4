"""Layout of GGUF files on disk: parts, metadata, and the position of each tensor's blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.sanitize import gist
from outlier_atlas.settings.source import gguf_parts


@dataclass(frozen=True)
class Blocks:
    """Tensor in a GGUF file.

    Attributes:
        name: name of the tensor in the file.
        file: name of the file.
        type: storage type of the values, such as `Q4_K`.
        shape: shape in torch's order, the slowest axis first.
        offset: position of the first byte in the file.
        size: number of bytes.
    """

    name: str
    file: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Blocks:
        """Return the tensor of a record; the inverse of `record`."""
        return cls(**record | {"shape": tuple(record["shape"])})

    def record(self) -> dict[str, Any]:
        """Return the attributes as JSON can store them."""
        return asdict(self) | {"shape": list(self.shape)}

    @property
    def rows(self) -> int:
        """Number of rows: the product of all axes but the last."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensors of a GGUF file, from all of its parts.

    Attributes:
        parts: the files, in order.
        metadata: values by key.
        blocks: tensors by name.
    """

    parts: tuple[Path, ...]
    metadata: dict[str, Any]
    blocks: dict[str, Blocks]

    @property
    def architecture(self) -> str:
        """Name of the architecture in llama.cpp."""
        return str(self.metadata["general.architecture"])


def read(path: Path) -> GgufFile:
    """Read the metadata and the tensor table of a GGUF file; no tensor is read.

    Args:
        path: the file, or one part of a split file.

    Raises:
        ValueError: the file is missing, damaged or not GGUF, or its parts do not belong together.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such GGUF file")
    parts = gguf_parts(path)
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ValueError(
            f"{path}: {missing[0]} is missing; a split GGUF file needs all of its {len(parts)} "
            f"parts in one folder"
        )
    metadata: dict[str, Any] = {}
    blocks: dict[str, Blocks] = {}
    for number, part in enumerate(parts):
        fields, part_blocks = _read_part(part)
        metadata = metadata or fields
        _check_part(part, number, len(parts), fields)
        duplicates = sorted({*blocks} & {*part_blocks})
        if duplicates:
            raise ValueError(
                f"{part}: tensor {duplicates[0]} is also in another part; fetch all parts again"
            )
        blocks |= part_blocks
    if "general.architecture" not in metadata:
        raise ValueError(f"{parts[0]}: general.architecture is missing in its metadata")
    total = metadata.get("split.tensors.count", len(blocks))
    if total != len(blocks):
        raise ValueError(
            f"{path}: split.tensors.count is {total}, but its parts have {len(blocks)} tensors; "
            f"fetch all parts again"
        )
    return GgufFile(tuple(parts), metadata, blocks)


def _read_part(path: Path) -> tuple[dict[str, Any], dict[str, Blocks]]:
    """Read the metadata and the tensor table of one part.

    Raises:
        ValueError: the part is damaged, big-endian, or has a type that cannot be dequantized.
    """
    from gguf import GGUFEndian, GGUFReader

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path}: not a GGUF file")
    try:
        reader = GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        tensors = [
            Blocks(
                name=str(tensor.name),
                file=path.name,
                type=tensor.tensor_type.name,
                shape=tuple(int(size) for size in reversed(tensor.shape)),
                offset=int(tensor.data_offset),
                size=int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        ]
    except Exception as error:  # on a damaged file the reader raises errors of any type
        raise ValueError(f"{path}: damaged GGUF file ({gist(error)}); fetch it again") from error
    if reader.endianess != GGUFEndian.LITTLE:
        raise ValueError(f"{path}: a big-endian GGUF file; convert it with gguf-convert-endian")
    duplicates = [name for name, number in Counter(t.name for t in tensors).items() if number > 1]
    if duplicates:
        raise ValueError(f"{path}: two tensors are named {duplicates[0]}; fetch it again")
    length = path.stat().st_size
    for tensor in tensors:
        if tensor.offset + tensor.size > length:
            raise ValueError(f"{path}: truncated within {tensor.name}; fetch it again")
        _check_type(path, tensor)
    return fields, {tensor.name: tensor for tensor in tensors}


def _check_part(part: Path, number: int, count: int, fields: dict[str, Any]) -> None:
    """Compare the number and the count of a part in its metadata with its file name.

    Raises:
        ValueError: they differ.
    """
    stated = fields.get("split.count", 1) or 1
    if stated != count:
        raise ValueError(
            f"{part}: split.count is {stated}, but its file name says {count}; restore the names "
            f"that the parts had"
        )
    if count > 1 and fields.get("split.no", number) != number:
        raise ValueError(
            f"{part}: split.no is {fields['split.no']}, but its file name says part {number + 1}; "
            f"restore the names that the parts had"
        )


def _check_type(path: Path, tensor: Blocks) -> None:
    size = tensor.size // max(tensor.rows, 1)
    try:
        dequantize(np.zeros((1, size), np.uint8), tensor.type)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"{path}: {tensor.name} is stored as {tensor.type}, which the gguf package cannot "
            f"dequantize; use the safetensors files of this model instead"
        ) from error


def dequantize(blocks: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Return the values of rows of blocks: (row, bytes) becomes (row, column) in float32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as dequantized

    if kind == "F32":
        return blocks.view(np.float32)
    return np.asarray(dequantized(blocks, GGMLQuantizationType[kind]), np.float32)


class Reader:
    """Reader of tensor rows, which memory-maps a file at the first read from it.

    Args:
        folder: folder of the GGUF files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, NDArray[np.uint8]] = {}

    def rows(self, blocks: Blocks, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows `start` to `stop - 1` of a tensor, (row, column) in float32."""
        return dequantize(self.raw(blocks)[start:stop], blocks.type)

    def raw(self, blocks: Blocks) -> NDArray[np.uint8]:
        """Return the bytes of a tensor's rows, (row, byte), memory-mapped."""
        if blocks.file not in self._files:
            self._files[blocks.file] = np.memmap(self._folder / blocks.file, np.uint8, "r")
        part = self._files[blocks.file][blocks.offset : blocks.offset + blocks.size]
        return np.asarray(part).reshape(blocks.rows, blocks.size // blocks.rows)


def stored_types(kinds: Sequence[str]) -> str:
    """Return the distinct types, separated by commas, the most frequent first."""
    return ", ".join(kind for kind, _ in Counter(kinds).most_common())
