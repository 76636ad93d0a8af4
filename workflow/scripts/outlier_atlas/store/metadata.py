"""Record of the files that zarr writes: metadata and coordinates of a run's arrays.

Chunks contain a checksum, but `zarr.json` files and chunks of coordinates do not. Therefore
`store/create.py` records the text of the `zarr.json` files and a checksum of the coordinates. It
deletes the record before it changes an array, and writes it when all arrays have their shape.
Without a record, no job uses the arrays, and `create_store` runs again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from outlier_atlas.files import (
    DamagedFileError,
    content,
    read_record,
    sha256,
    write_record,
    write_whole,
)
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.store.version import STORE_VERSION

METADATA_FILE = "zarr.json"

COORDINATES = {
    "layer": "layer of the model, 0-based",
    "token_id": "the tokenizer's id of the token",
    "sequence": "sequence of the token, 0-based",
    "position": "position of the token in its sequence, 0-based",
}
"""The coordinates with their descriptions."""


class DamagedMetadataError(DamagedFileError):
    """Metadata or a coordinate of a run's arrays is damaged.

    Rule `create_store` restores the file. `path` is the output of that rule.

    Attributes:
        file: the damaged file.
    """

    def __init__(self, run: RunFiles, file: Path, cause: str, more: int = 0) -> None:
        super().__init__(run.store_record, cause)
        others = f", and {more} more" if more else ""
        self.args = (f"{file}: damaged ({cause}){others}; run again: it is restored",)
        self.file = file


def write(run: RunFiles, layout: Layout) -> None:
    """Record the current metadata and coordinates of a run's arrays."""
    files = sorted(
        path
        for store in (run.activations, run.boundaries)
        for pattern in (METADATA_FILE, f"*/{METADATA_FILE}")
        for path in store.glob(pattern)
    )
    chunks = (run.activations / name / "c" for name in COORDINATES)
    coordinates = sorted(path for folder in chunks for path in folder.glob("*") if path.is_file())
    record = {
        "store_version": STORE_VERSION,
        "layout": layout.record(),
        "files": {_name(run, path): path.read_text("utf-8") for path in files},
        "coordinates": {_name(run, path): sha256(path) for path in coordinates},
    }
    write_record(run.metadata_record, record)


def forget(run: RunFiles, arrays: Collection[Path]) -> None:
    """Remove arrays from the record before they are removed from the disk.

    Args:
        run: the files of the run.
        arrays: the folders of the arrays.
    """
    record = read(run)
    gone = {_name(run, folder / METADATA_FILE) for folder in arrays}
    files = {name: text for name, text in record["files"].items() if name not in gone}
    if files != record["files"]:
        write_record(run.metadata_record, record | {"files": files})


def remove(run: RunFiles) -> None:
    """Remove the record before an array changes."""
    (run.metadata_record).unlink(missing_ok=True)


def read(run: RunFiles) -> dict[str, Any]:
    """Read the record.

    Raises:
        DamagedMetadataError: the record is missing or damaged.
    """
    try:
        return read_record(run.metadata_record)
    except FileNotFoundError as error:
        raise DamagedMetadataError(run, run.metadata_record, "it is missing") from error
    except DamagedFileError as error:
        raise DamagedMetadataError(run, run.metadata_record, error.cause) from error


def check(run: RunFiles) -> None:
    """Compare the metadata of the arrays with the record.

    Raises:
        DamagedMetadataError: the metadata differs.
    """
    changed = list(differing(run, read(run)))
    if changed:
        path, cause = changed[0]
        raise DamagedMetadataError(run, path, cause, len(changed) - 1)


def differing(run: RunFiles, record: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield the metadata files that differ from the record, each with the cause."""
    for name, text in record["files"].items():
        current = content(run.folder / name)
        if current is None:
            yield run.folder / name, "its file is missing"
        elif current != text.encode():
            yield run.folder / name, f"it is not what {run.metadata_record.name} has"


def differing_coordinates(run: RunFiles, record: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield the chunks of coordinates that differ from the record, each with the cause."""
    for name, digest in record["coordinates"].items():
        if not (run.folder / name).is_file():
            yield run.folder / name, "its file is missing"
        elif sha256(run.folder / name) != digest:
            yield run.folder / name, f"its checksum in {run.metadata_record.name} does not agree"


def restore(run: RunFiles) -> list[DamagedMetadataError]:
    """Restore metadata from the record, and remove chunks of coordinates that differ.

    An array without its folder is not restored, because its chunks are also missing.

    Returns:
        The damage that was found.

    Raises:
        DamagedMetadataError: the record is missing or damaged, so nothing can be restored.
    """
    record = read(run)
    damages = []
    for path, cause in differing(run, record):
        damages.append(DamagedMetadataError(run, path, cause))
        if path.parent.is_dir():
            write_whole(path, record["files"][_name(run, path)].encode())
    for path, cause in differing_coordinates(run, record):
        damages.append(DamagedMetadataError(run, path, cause))
        path.unlink(missing_ok=True)
    return damages


def _name(run: RunFiles, path: Path) -> str:
    return path.relative_to(run.folder).as_posix()
