"""The dataset stage: fetch what a hub dataset gives, and make the run's tokens."""

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
from outlier_atlas.data.packing import Document, Packing, Used, pack
from outlier_atlas.data.reading import Reading
from outlier_atlas.data.tokens import write_tokens
from outlier_atlas.files import (
    DamagedFileError,
    read_record,
    replacing,
    sha256,
    write_record,
)
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
    """Stream a hub dataset and keep the documents that the run's tokens need.

    Args:
        output: JSON lines, in the order in which they are used.
        record: says which dataset and commit they are of.
        before: sequences before those that are wanted.

    Raises:
        ValueError: it cannot be had, or gives too little text; one sentence.
    """
    from outlier_atlas.data import hub

    kind, column = settings.column
    commit = hub.resolve(settings)
    model = _Model.load(model_record, resources, trust_remote_code)
    with replacing(output) as temporary, temporary.open("w", encoding="ascii") as file:
        reading = Reading()
        streamed = {settings.source: hub.stream(settings, commit)}

        def kept() -> DatasetRows:
            for place, value in valid(streamed, kind, settings.source, column, reading):
                file.write(json.dumps({column: value}) + "\n")
                yield place, value

        used = Used()
        encode = model.encoder(settings, before)
        for _ in _sequences(settings, model, encode, kept(), used, before):
            pass
    described = {
        "source": settings.source,
        "commit": commit,
        "documents": used.documents,
        "sha256": sha256(output),
    }
    write_record(record, described | {"reading": reading.record()})


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
    """Make the run's sequences, and write its token store and its record.

    Args:
        settings: the `dataset` section of the configuration.
        model_record: the record of the model; `resources` is the folder that it is relative to.
        fetched: of a hub dataset the documents and their record.
        tokens: the token store.
        record: its record.
        before: sequences of the dataset that are left out before them.

    Raises:
        ValueError: the dataset is not what it should be, or gives too little text; one sentence.
    """
    model = _Model.load(model_record, resources, trust_remote_code)
    if fetched:
        check_documents(*fetched)
    reading = Reading()
    rows = documents(settings, resources, fetched[0] if fetched else None, reading)
    used = Used()
    encode = model.encoder(settings, before)
    summary = write_tokens(
        tokens,
        _sequences(settings, model, encode, rows, used, before),
        encoding.token_text(model.tokenizer),
        encoding.pieces(model.tokenizer),
    )
    # Of a hub dataset the rows were counted where they were fetched.
    held = read_record(fetched[1]) if fetched else {"commit": None}
    described = {"source": settings.source, "commit": held["commit"], "packing": settings.packing}
    described["reading"] = held.get("reading", reading.record())
    write_record(record, asdict(summary) | described | _contents(settings, model, encode, used))


def check_documents(documents: Path, record: Path) -> None:
    """Compare the documents of a hub dataset with their record.

    Raises:
        DamagedFileError: they are another file, or the record is damaged.
    """
    known = read_record(record).get("sha256")  # records of older versions have none
    if known and (not documents.is_file() or sha256(documents) != known):
        raise DamagedFileError(documents, f"it is not the file that {record.name} describes")


def _contents(
    settings: DatasetSettings, model: _Model, encode: encoding.Encoder, used: Used
) -> dict[str, Any]:
    """What the sequences begin with, and what the record says of their special tokens."""
    starts = {start: number for start, number in used.starts.items() if start}
    start = max(starts, key=lambda each: starts[each], default=())
    name = encoding.token_text(model.tokenizer)
    return {
        "bos": bool(start),
        "start_ids": list(start),
        "start": [name(token) or str(token) for token in start],
        "sequences_with_start": sum(starts.values()),
        "documents": used.documents,
        "special_ids": model.special_ids,
        "special_tokens": settings.special_tokens,
        "special_tokens_in_text": used.special if settings.column[0] == "text" else None,
        "template_date": settings.date if encode.template and encode.template.asked else None,
    }


@dataclass(frozen=True)
class _Model:
    """What the tokens depend on: the tokenizer and the model's own ids."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None

    @classmethod
    def load(cls, record: Path, resources: Path, trust_remote_code: bool) -> _Model:
        weights = CheckedWeights(record, resources)
        weights.check()  # its configuration
        weights.check_tokenizer()
        folder = locate(read_record(record), resources)
        config = text_config(load_config(folder, trust_remote_code))
        return cls(config, load_tokenizer(folder, trust_remote_code))

    @property
    def special_ids(self) -> list[int]:
        """Ids of the tokenizer's special tokens; without one those that the configuration names."""
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
        """DatasetRows of the embedding."""
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
    used: Used,
    before: int,
) -> Iterator[list[int]]:
    def encoded() -> Iterator[Document]:
        for place, value in rows:
            try:
                document = encode(value)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
            yield document

    return pack(encoded(), replace(model.packing(settings), before=before), used)


def _first(token: int | list[int] | None) -> int | None:
    """A configuration may name several end-of-text ids; the first is the tokenizer's own."""
    return token[0] if isinstance(token, list) else token
