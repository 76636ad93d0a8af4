"""The jobs of the dataset stage: fetch documents of a hub dataset, and make the run's tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas.checkpoint.source import (
    load_config,
    load_tokenizer,
    locate,
    text_config,
)
from outlier_atlas.checkpoint.weight_integrity import CheckedWeights
from outlier_atlas.data import encoding
from outlier_atlas.data.corpus import DatasetRows, documents, valid
from outlier_atlas.data.packing import Document, Packing, PackingCounts, pack
from outlier_atlas.data.reading import Reading
from outlier_atlas.data.tokens import write_tokens
from outlier_atlas.earlier_jobs import TOKENS
from outlier_atlas.files import (
    DamagedFileError,
    read_record,
    replacing,
    sha256,
    write_record,
)
from outlier_atlas.phases import note
from outlier_atlas.settings.dataset import DatasetSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def fetch_dataset(
    settings: DatasetSettings,
    model_record: Path,
    resources: Path,
    trust_remote_code: bool,
    output: Path,
    record: Path,
    before: int = 0,
) -> None:
    """Stream a hub dataset and write the documents that the run's tokens need.

    Args:
        settings: the `dataset` section of the configuration.
        model_record: record of the model.
        resources: folder that the record is relative to.
        trust_remote_code: whether code of the checkpoint may run.
        output: file for the documents, as JSON lines in the order of their use.
        record: file for the record of the dataset, its commit and the documents.
        before: number of sequences before those of the run.

    Raises:
        ValueError: The dataset cannot be fetched, or has too little text.
    """
    from outlier_atlas.data import hub

    kind, column = settings.column
    commit = hub.resolve(settings)
    model = _Model.load(model_record, resources, trust_remote_code)
    with replacing(output) as temporary, temporary.open("w", encoding="ascii") as file:
        reading = Reading()
        streamed = {settings.source: hub.stream(settings, commit)}

        def written() -> DatasetRows:
            for location, value in valid(streamed, kind, settings.source, column, reading):
                file.write(json.dumps({column: value}) + "\n")
                yield location, value

        counts = PackingCounts()
        encode = model.encoder(settings, before)
        for _ in _sequences(settings, model, encode, written(), counts, before):
            pass
    entries = {
        "source": settings.source,
        "commit": commit,
        "documents": counts.documents,
        "sha256": sha256(output),
    }
    write_record(record, entries | {"reading": reading.record()})


def tokenize_dataset(
    settings: DatasetSettings,
    model_record: Path,
    resources: Path,
    trust_remote_code: bool,
    fetched: tuple[Path, Path] | None,
    tokens: Path,
    record: Path,
    before: int = 0,
) -> None:
    """Make the run's sequences, and write the token store and its record.

    Args:
        settings: the `dataset` section of the configuration.
        model_record: record of the model.
        resources: folder that the record is relative to.
        trust_remote_code: whether code of the checkpoint may run.
        fetched: the documents of a hub dataset and their record; None for other datasets.
        tokens: file for the token store.
        record: file for the record of the token store.
        before: number of sequences of the dataset that are skipped.

    Raises:
        ValueError: The dataset is malformed, or has too little text.
    """
    model = _Model.load(model_record, resources, trust_remote_code)
    if fetched:
        check_documents(*fetched)
    reading = Reading()
    rows = documents(settings, resources, fetched[0] if fetched else None, reading)
    counts = PackingCounts()
    encode = model.encoder(settings, before)
    summary = write_tokens(
        tokens,
        _sequences(settings, model, encode, rows, counts, before),
        encoding.token_text(model.tokenizer),
        encoding.pieces(model.tokenizer),
    )
    note(tokens=summary.tokens, sizes={TOKENS: summary.tokens})
    # The rows of a hub dataset were counted when they were fetched.
    fetch = read_record(fetched[1]) if fetched else {"commit": None}
    entries = {"source": settings.source, "commit": fetch["commit"], "packing": settings.packing}
    entries["reading"] = fetch.get("reading", reading.record())
    write_record(record, asdict(summary) | entries | _contents(settings, model, encode, counts))


def check_documents(documents: Path, record: Path) -> None:
    """Compare the documents of a hub dataset with their record.

    Raises:
        DamagedFileError: The file differs from its record, or the record is damaged.
    """
    known = read_record(record).get("sha256")  # records of older versions have none
    if known and (not documents.is_file() or sha256(documents) != known):
        raise DamagedFileError(documents, f"it is not the file that {record.name} describes")


def _contents(
    settings: DatasetSettings, model: _Model, encode: encoding.Encoder, counts: PackingCounts
) -> dict[str, Any]:
    """Return the entries of the record about starts and special tokens of the sequences."""
    starts = {start: number for start, number in counts.starts.items() if start}
    start = max(starts, key=lambda each: starts[each], default=())
    name = encoding.token_text(model.tokenizer)
    return {
        "bos": bool(start),
        "start_ids": list(start),
        "start": [name(token) or str(token) for token in start],
        "sequences_with_start": sum(starts.values()),
        "documents": counts.documents,
        "special_ids": model.special_ids,
        "special_tokens": settings.special_tokens,
        "special_tokens_in_text": counts.special if settings.column[0] == "text" else None,
        "template_date": settings.date if encode.template and encode.template.date_used else None,
    }


@dataclass(frozen=True)
class _Model:
    """The parts of a model that its tokens depend on: the tokenizer and the configuration."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None

    @classmethod
    def load(cls, record: Path, resources: Path, trust_remote_code: bool) -> _Model:
        weights = CheckedWeights(record, resources)
        weights.check()  # includes the model's configuration
        weights.check_tokenizer()
        folder = locate(read_record(record), resources)
        config = text_config(load_config(folder, trust_remote_code))
        return cls(config, load_tokenizer(folder, trust_remote_code))

    @property
    def special_ids(self) -> list[int]:
        """Ids of the special tokens of the tokenizer, or else of the model's configuration."""
        if self.tokenizer is not None:
            return sorted(encoding.special_ids(self.tokenizer))
        named = [getattr(self.config, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")]
        return sorted(
            {
                int(t)
                for ids in named
                for t in (ids if isinstance(ids, list) else [ids])
                if t is not None
            }
        )

    def encoder(self, settings: DatasetSettings, before: int = 0) -> encoding.Encoder:
        bos = _first(getattr(self.config, "bos_token_id", None))
        return encoding.encoder(settings, self.tokenizer, self.vocabulary, before, bos)

    @property
    def vocabulary(self) -> int:
        """Number of rows of the embedding."""
        return int(self.config.vocab_size)

    def packing(self, settings: DatasetSettings) -> Packing:
        own = self.config if self.tokenizer is None else self.tokenizer
        separator = _first(getattr(own, "eos_token_id", None))
        if settings.packing == "concat" and separator is None:
            raise ValueError(
                "dataset.packing = 'concat': the tokenizer has no end-of-text token to join "
                "documents with; take document"
            )
        if settings.packing == "concat":
            encoding.check_id(
                "end-of-text token",
                separator,
                self.vocabulary,
                "dataset.packing: document needs none",
            )
        return Packing(
            kind=settings.packing,
            sequences=settings.sequences,
            length=settings.sequence_length,
            min_length=settings.min_length,
            separator=separator if settings.packing == "concat" else None,
            special=frozenset(self.special_ids),
        )


def _sequences(
    settings: DatasetSettings,
    model: _Model,
    encode: encoding.Encoder,
    rows: DatasetRows,
    counts: PackingCounts,
    before: int,
) -> Iterator[list[int]]:
    def encoded() -> Iterator[Document]:
        for location, value in rows:
            try:
                document = encode(value)
            except ValueError as error:
                raise ValueError(f"{location}: {error}") from error
            yield document

    return pack(encoded(), replace(model.packing(settings), before=before), counts)


def _first(token: int | list[int] | None) -> int | None:
    """Return the first of several ids in a configuration, which is the tokenizer's own."""
    return token[0] if isinstance(token, list) else token
