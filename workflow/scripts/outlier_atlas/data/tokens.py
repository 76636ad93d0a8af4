"""The token store of a run: every token with its position and its text, in one Parquet file.

Detection and report read tokens and their text from the token store, and need no tokenizer.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from outlier_atlas.files import DamagedFileError, read_record, replacing, sha256

ROW_GROUP = 2**16
"""Number of tokens in a row group, which is read to look up the text of one token."""

HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")
_TEXT = pa.dictionary(pa.int32(), pa.string())


def _field(name: str, type_: pa.DataType, definition: str) -> pa.Field[Any]:
    return pa.field(name, type_, nullable=False, metadata={"definition": definition})


SCHEMA = pa.schema(
    [
        _field("sequence", pa.int32(), "Sequence, 0-based."),
        _field("position", pa.int32(), "Position of the token in its sequence, 0-based."),
        _field("token_id", pa.int32(), "The tokenizer's id of the token."),
        _field("token_text", _TEXT, "The token's own text; the name of a special token."),
        _field(
            "text",
            _TEXT,
            "The token's part of the decoded text. The joined parts of a window are its text. A "
            "character of several tokens belongs to the last of them.",
        ),
    ]
)

TokenText = Callable[[int], str]
"""Function from a token id to the token's own text."""
Pieces = Callable[[Sequence[int]], list[str]]
"""Function from the ids of a sequence to each token's part of the decoded text."""


@dataclass(frozen=True)
class WrittenTokens:
    """The description of a written token store.

    Attributes:
        fingerprint: sha256 of the token ids (int32) and the sequence starts (int64).
        sha256: sha256 of the file.
        tokens, sequences: number of tokens and of sequences.
        shortest, longest: number of tokens of the shortest and the longest sequence.
    """

    fingerprint: str
    sha256: str
    tokens: int
    sequences: int
    shortest: int
    longest: int


def write_tokens(
    path: Path, sequences: Iterable[Sequence[int]], token_text: TokenText, pieces: Pieces
) -> WrittenTokens:
    """Write the token store atomically.

    Args:
        path: the file.
        sequences: token ids of each sequence; at least one sequence, and none empty.
        token_text: function that returns a token's own text.
        pieces: function that returns each token's part of a sequence's text.
    """
    own_text = lru_cache(maxsize=None)(token_text)
    lengths: list[int] = []
    ids_digest = hashlib.sha256()
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer,
    ):
        pending: list[pa.RecordBatch] = []
        for index, sequence in enumerate(sequences):
            ids = np.asarray(sequence, np.int32)
            assert len(ids), "no sequence is empty"
            ids_digest.update(ids.astype("<i4").tobytes())
            lengths.append(len(ids))
            pending.append(_batch(index, ids, own_text, pieces))
            if sum(batch.num_rows for batch in pending) >= ROW_GROUP:
                _write(writer, pending)
        _write(writer, pending)
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    ids_digest.update(starts.astype("<i8").tobytes())
    return WrittenTokens(
        fingerprint=ids_digest.hexdigest(),
        sha256=sha256(path),
        tokens=int(starts[-1]),
        sequences=len(lengths),
        shortest=min(lengths),
        longest=max(lengths),
    )


def copy_tokens(source: tuple[Path, Path], target: tuple[Path, Path]) -> None:
    """Copy a token store and its record, each file atomically.

    Args:
        source, target: the token store and its record.

    Raises:
        DamagedFileError: The token store does not match its record.
    """
    TokenStore.recorded(*source)
    for path, copy in zip(source, target, strict=True):
        with replacing(copy) as temporary:
            shutil.copyfile(path, temporary)


@dataclass(frozen=True)
class TokenStore:
    """The tokens of a run.

    Attributes:
        path: the Parquet file.
        token_ids: (tokens,), int32.
        sequence_starts: (sequences + 1,), int64: index of each sequence's first token, and the
            number of tokens.
    """

    path: Path
    token_ids: NDArray[np.int32]
    sequence_starts: NDArray[np.int64]

    @classmethod
    def recorded(cls, path: Path, record: Path) -> TokenStore:
        """Open the file that a record describes.

        Raises:
            DamagedFileError: The file or the record is missing or damaged, or they do not match.
        """
        expected = read_record(record)["sha256"]
        if not path.is_file() or sha256(path) != expected:
            raise DamagedFileError(path, f"it is not the file that {record.name} describes")
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Read the token ids; text is read on demand.

        Raises:
            DamagedFileError: The file is missing or damaged.
        """
        try:
            table = pq.read_table(path, columns=["sequence", "token_id"])
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DamagedFileError(path, f"the token store cannot be read: {error}") from error
        sequence = table["sequence"].to_numpy()
        starts = np.flatnonzero(np.diff(sequence, prepend=-1))
        return cls(path, table["token_id"].to_numpy(), np.append(starts, len(sequence)))

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.token_ids)

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        return len(self.sequence_starts) - 1

    def sequence(self, index: int) -> NDArray[np.int32]:
        """Return the token ids of a sequence, (token,)."""
        return self.token_ids[self.sequence_starts[index] : self.sequence_starts[index + 1]]

    def token_text(self, indices: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Return the own text of tokens, given their indices along the token axis."""
        return self._take("token_text", np.asarray(indices, np.int64))

    def window(self, token_index: int, before: int, after: int) -> tuple[str, str, str]:
        """Return the text before a token, the token's part of the text, and the text after it.

        Args:
            token_index: index along the token axis.
            before, after: number of tokens before and after it, within the sequence.
        """
        sequence = int(np.searchsorted(self.sequence_starts, token_index, side="right")) - 1
        first = max(int(self.sequence_starts[sequence]), token_index - before)
        last = min(int(self.sequence_starts[sequence + 1]), token_index + 1 + after)
        text = self._take("text", np.arange(first, last))
        middle = token_index - first
        return "".join(text[:middle]), text[middle], "".join(text[middle + 1 :])

    def _take(self, column: str, indices: NDArray[np.int64]) -> list[str]:
        file = pq.ParquetFile(self.path)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        taken: dict[int, str] = {}
        groups = np.searchsorted(starts, indices, side="right") - 1
        for group in np.unique(groups):
            in_group = indices[groups == group]
            values = file.read_row_group(int(group), columns=[column])[column]
            texts = values.take(pa.array(in_group - starts[group])).to_pylist()
            taken |= dict(zip(in_group.tolist(), texts, strict=True))
        return [taken[int(index)] for index in indices]


def _batch(
    index: int, ids: NDArray[np.int32], token_text: TokenText, pieces: Pieces
) -> pa.RecordBatch:
    columns: list[Any] = [
        np.full(len(ids), index, np.int32),
        np.arange(len(ids), dtype=np.int32),
        ids,
        _texts(token_text(int(i)) for i in ids),
        _texts(pieces(ids.tolist())),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def _texts(texts: Iterable[str]) -> pa.Array[Any]:
    """Return texts as a dictionary array.

    Tokenizers in Python may return half of a surrogate pair. UTF-8 cannot encode it, so it is
    replaced.
    """
    whole = [HALF_OF_A_PAIR.sub("\N{REPLACEMENT CHARACTER}", text) for text in texts]
    return pa.array(whole, pa.string()).dictionary_encode()


def _write(writer: pq.ParquetWriter, batches: list[pa.RecordBatch]) -> None:
    if batches:
        table = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
        writer.write_table(table, row_group_size=ROW_GROUP)
        batches.clear()
