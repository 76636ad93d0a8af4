"""The dataset stage: fetch what a hub dataset gives, and make the run's tokens."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas.data import encoding
from outlier_atlas.data.corpus import documents, valid
from outlier_atlas.data.packing import Packing, Used, pack
from outlier_atlas.data.tokens import write_tokens
from outlier_atlas.files import canonical, read_record, replacing, write_record
from outlier_atlas.model.source import load_config, load_tokenizer, locate, text_config
from outlier_atlas.settings.dataset import DatasetSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def slug(settings: DatasetSettings, model: str) -> str:
    """A file name for what is fetched of a hub dataset for one run.

    Args:
        model: stands for the model, whose tokenizer decides how many documents are enough.
    """
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", settings.source).strip("-.")
    key = canonical([settings.model_dump(mode="json"), model])
    return f"{readable[:80]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


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

        def kept() -> Iterator[Any]:
            for value in valid(hub.stream(settings, commit), kind, f"column {column!r}"):
                file.write(json.dumps({column: value}) + "\n")
                yield value

        used = Used()
        for _ in _sequences(settings, model, kept(), used, before):
            pass
    described = {"source": settings.source, "commit": commit, "documents": used.documents}
    write_record(record, described)


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
    values = documents(settings, resources, fetched[0] if fetched else None)
    used = Used()
    summary = write_tokens(
        tokens,
        _sequences(settings, model, values, used, before),
        encoding.token_text(model.tokenizer),
        encoding.pieces(model.tokenizer),
    )
    bos = model.packing(settings).bos
    added: dict[str, Any] = {"bos": bos is not None, "bos_id": bos, "documents": used.documents}
    added["special_ids"] = model.special_ids
    commit = read_record(fetched[1])["commit"] if fetched else None
    described = {"source": settings.source, "commit": commit, "packing": settings.packing}
    write_record(record, asdict(summary) | added | described)


@dataclass(frozen=True)
class _Model:
    """What the tokens depend on: the tokenizer and the model's own ids."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None

    @classmethod
    def load(cls, record: Path, resources: Path, trust_remote_code: bool) -> _Model:
        folder = locate(read_record(record), resources)
        config = text_config(load_config(folder, trust_remote_code))
        return cls(config, load_tokenizer(folder, trust_remote_code))

    @property
    def special_ids(self) -> list[int]:
        """Ids of the tokenizer's special tokens; without one those that the configuration names."""
        if self.tokenizer is not None:
            return sorted({int(token) for token in self.tokenizer.all_special_ids})
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
        return encoding.encoder(settings, self.tokenizer, int(self.config.vocab_size), before)

    def packing(self, settings: DatasetSettings) -> Packing:
        own = self.config if self.tokenizer is None else self.tokenizer
        separator = _first(getattr(own, "eos_token_id", None))
        if settings.packing == "concat" and separator is None:
            raise ValueError(
                "dataset.packing = 'concat': the tokenizer has no end-of-text token to join "
                "documents with; take document"
            )
        bos = _first(getattr(self.config, "bos_token_id", None))
        return Packing(
            kind=settings.packing,
            sequences=settings.sequences,
            length=settings.sequence_length,
            min_length=settings.min_length,
            bos=encoding.bos(settings, self.encoder(settings), bos),
            separator=separator if settings.packing == "concat" else None,
        )


def _sequences(
    settings: DatasetSettings, model: _Model, values: Iterator[Any], used: Used, before: int
) -> Iterator[list[int]]:
    encode = model.encoder(settings, before)
    packing = replace(model.packing(settings), before=before)
    return pack((encode(value) for value in values), packing, used)


def _first(token: int | list[int] | None) -> int | None:
    """A configuration may name several end-of-text ids; the first is the tokenizer's own."""
    return token[0] if isinstance(token, list) else token
