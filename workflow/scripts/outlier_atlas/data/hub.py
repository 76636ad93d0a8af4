"""Streaming of hub datasets: only the rows that a run uses are fetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from outlier_atlas.checkpoint.hub import gated, readable_errors
from outlier_atlas.data.corpus import SHUFFLE_BUFFER
from outlier_atlas.settings.dataset import DatasetSettings


def resolve(settings: DatasetSettings) -> str:
    """Return the commit of a dataset's revision.

    Raises:
        ValueError: The dataset or revision does not exist or is gated, or the hub cannot be
            reached.
    """
    import huggingface_hub as hub

    with readable_errors("dataset", settings.source, settings.revision):
        info = hub.HfApi().dataset_info(settings.source, revision=settings.revision)
    return str(info.sha)


def stream(settings: DatasetSettings, commit: str) -> Iterator[Any]:
    """Yield the values of the column, in the dataset's order or shuffled.

    Raises:
        ValueError: The subset, split or column does not exist, or the hub cannot be reached.
    """
    _, column = settings.column
    name = f"dataset {settings.source!r}"
    with readable_errors("dataset", settings.source, settings.revision):
        for row in _rows(settings, commit, name):
            if column not in row:
                columns = ", ".join(map(repr, row))
                raise ValueError(
                    f"{name}: there is no column {column!r}; its columns are {columns}"
                )
            yield row[column]


def _rows(settings: DatasetSettings, commit: str, name: str) -> Iterator[dict[str, Any]]:
    import datasets

    errors = datasets.exceptions
    try:
        files = {settings.split: settings.files} if settings.files else None
        rows = datasets.load_dataset(
            settings.source, settings.subset, split=settings.split, revision=commit,
            data_files=files, streaming=True,
        )  # fmt: skip
        if settings.shuffle_seed is not None:
            rows = rows.shuffle(seed=settings.shuffle_seed, buffer_size=SHUFFLE_BUFFER)
        yield from rows
    except errors.DataFilesNotFoundError as error:
        raise ValueError(f"{name}: it has no data files that `datasets` can read") from error
    except errors.DatasetNotFoundError as error:
        # `datasets` gives the cause only in the message.
        if "gated" in str(error):
            raise gated(name) from error
        raise ValueError(f"{name}: {error}") from error
    except (RuntimeError, ValueError, errors.DatasetsError) as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from error
