"""A configured run as the rules see it: its model, its datasets, and the names of their files.

Rules of models and datasets have the wildcards `model` and `dataset`. File names of models and
datasets identify all of their inputs, so that several runs share the files.
Every Snakemake process imports this module, so it imports no large packages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from outlier_atlas import builtin, products
from outlier_atlas.checkpoint import source as model_stage
from outlier_atlas.data import folder
from outlier_atlas.data import source as data_stage
from outlier_atlas.devices.registry import is_host
from outlier_atlas.digests import Digests
from outlier_atlas.sanitize import visible
from outlier_atlas.settings.configuration import Settings
from outlier_atlas.settings.dataset import DatasetSettings
from outlier_atlas.settings.model import ModelSettings
from outlier_atlas.settings.source import gguf_parts, local_path, source_kind

RESOURCES = Path("resources")
"""Folder of the files that several runs share."""


@dataclass(frozen=True, eq=False)
class Package:
    """A package with a built-in model or text.

    Attributes:
        package: the name behind `builtin:`.
    """

    package: str

    @property
    def name(self) -> str:
        """The name of its rule's records: the values of the wildcards `package` and `file`."""
        return f"{self.package}.{builtin.PACKAGES[self.package].file}"

    @property
    def file(self) -> str:
        """The file that is taken from the package."""
        return f"{RESOURCES}/builtin/{self.package}/{builtin.PACKAGES[self.package].file}"

    def recorded_settings(self) -> dict[str, Any]:
        """Return the description of the file, whose checksum does not depend on the code."""
        return asdict(builtin.PACKAGES[self.package])


@dataclass(frozen=True, eq=False)
class PlannedModel:
    """The model of a run.

    Attributes:
        settings: the section `model` of the configuration.
        keep_digests: whether digests of its files may be written down.
    """

    settings: ModelSettings
    keep_digests: bool

    @cached_property
    def name(self) -> str:
        """The value of the wildcard `model`."""
        return model_stage.slug(self.settings)

    @property
    def record(self) -> str:
        """The record that other rules know the model by."""
        return f"{RESOURCES}/models/{self.name}.json"

    @property
    def title(self) -> str:
        """The source for the terminal, without characters that a terminal obeys."""
        return visible(self.settings.source)

    @property
    def kind(self) -> str:
        """`builtin`, `gguf`, `local` or `hub`."""
        return source_kind(self.settings.source)

    @property
    def is_fetched(self) -> bool:
        """Whether a model of the hub is on this machine; other models always are."""
        return self.kind != "hub" or Path(self.record).exists()

    def recorded_settings(self) -> dict[str, Any]:
        """Return the settings that make it another model."""
        return self.settings.model_dump(mode="json", exclude={"dtype"})

    def digests(self) -> Mapping[str, str]:
        """Return the digests of a local model's files, by name.

        Files that do not exist are left out: the job that reads the model refuses it.
        """
        return self._digests.of(self._files())

    @cached_property
    def _digests(self) -> Digests:
        return model_stage.digests_of(Path(self.record), RESOURCES, self.keep_digests)

    def _files(self) -> dict[str, Path]:
        if self.kind in ("builtin", "hub"):
            return {}
        path = local_path(self.settings.source)
        if self.kind == "gguf":
            return {part.name: part for part in gguf_parts(path)}
        try:
            return {file.name: file for file in model_stage.files(path)}
        except OSError:
            return {}


@dataclass(frozen=True, eq=False)
class PlannedDataset:
    """Sequences of a dataset, encoded with the tokenizer of a model.

    Attributes:
        settings: the section `dataset` of the configuration; `sequences` is the number wanted.
        before: number of the dataset's sequences that come before them.
        model: the model that has the tokenizer.
        keep_digests: whether digests of the dataset's files may be written down.
    """

    settings: DatasetSettings
    before: int
    model: PlannedModel
    keep_digests: bool

    @cached_property
    def name(self) -> str:
        """The value of the wildcard `dataset`."""
        if not self.before:
            return data_stage.slug(self.settings, self.model.name)
        earlier = self.settings.model_copy(update={"sequences": self.before})
        name = data_stage.slug(self.settings, data_stage.slug(earlier, self.model.name))
        return f"heldout-{name}"

    @property
    def title(self) -> str:
        """The source for the terminal, without characters that a terminal obeys."""
        return visible(self.settings.source)

    @property
    def kind(self) -> str:
        """`builtin`, `local` or `hub`."""
        return source_kind(self.settings.source)

    @property
    def documents(self) -> str:
        """The documents of a hub dataset."""
        return f"{RESOURCES}/datasets/{self.name}.jsonl"

    @property
    def documents_record(self) -> str:
        """The record of `documents`."""
        return f"{RESOURCES}/datasets/{self.name}.json"

    @property
    def tokens(self) -> str:
        """The token store."""
        return f"{RESOURCES}/tokens/{self.name}.parquet"

    @property
    def tokens_record(self) -> str:
        """The record of `tokens`."""
        return f"{RESOURCES}/tokens/{self.name}.json"

    def files(self) -> list[str]:
        """Return the files of other rules that the text is read from."""
        if self.kind == "hub":
            return [self.documents, self.documents_record]
        return builtin_files(self.settings.source)

    def recorded_settings(self) -> dict[str, Any]:
        """Return everything in the configuration that the tokens depend on."""
        return {
            "dataset": self.settings.model_dump(mode="json"),
            "before": self.before,
            "trust_remote_code": self.model.settings.trust_remote_code,
        }

    def digests(self) -> Mapping[str, str]:
        """Return the digests of a local dataset's files, by name."""
        return self._digests.of(self._local_files)

    @cached_property
    def _digests(self) -> Digests:
        return data_stage.digests_of(self.settings, RESOURCES, self.keep_digests)

    @cached_property
    def _local_files(self) -> Mapping[str, Path]:
        """The files: a folder may have many, and is listed once."""
        return folder.local_files(self.settings)


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run of a configuration.

    Attributes:
        settings: the whole configuration.
        keep_digests: whether digests of the user's files may be written down.
    """

    settings: Settings
    keep_digests: bool

    @property
    def name(self) -> str:
        """The name of the run and of its folder."""
        return self.settings.name

    @property
    def folder(self) -> str:
        """The folder of everything that belongs to the run only."""
        return f"results/{self.name}"

    @cached_property
    def model(self) -> PlannedModel:
        """The model."""
        return PlannedModel(self.settings.model, self.keep_digests)

    @cached_property
    def dataset(self) -> PlannedDataset:
        """The sequences whose activations are extracted."""
        return PlannedDataset(self.settings.dataset, 0, self.model, self.keep_digests)

    @cached_property
    def heldout(self) -> PlannedDataset:
        """The sequences of the ablation stage: those after the run's own."""
        own, sequences = self.settings.dataset, self.settings.ablation.sequences
        settings = own.model_copy(update={"sequences": sequences})
        return PlannedDataset(settings, own.sequences, self.model, self.keep_digests)

    @property
    def ablates(self) -> bool:
        """Whether there is an ablation stage."""
        return self.settings.ablation.sequences > 0

    @property
    def datasets(self) -> list[PlannedDataset]:
        """All sequences that the run needs."""
        return [self.dataset, *([self.heldout] if self.ablates else [])]

    @property
    def builtins(self) -> list[str]:
        """The built-in sources of the run: of its model, of its text."""
        sources = self.settings.model.source, self.settings.dataset.source
        return [source for source in sources if source_kind(source) == "builtin"]

    @property
    def on_gpus(self) -> bool:
        """Whether the run may compute on a GPU."""
        return not is_host(self.settings.execution.device)

    @property
    def layer_groups(self) -> int | str:
        """The configured number of layer groups, or `auto`."""
        return self.settings.extraction.layer_groups

    @property
    def sequence_shards(self) -> int:
        """The number of sequence shards."""
        return self.settings.extraction.sequence_shards

    @property
    def compared(self) -> Path | None:
        """The folder of the run that the report compares with."""
        other = self.settings.report.compare
        return Path("results") / other if other else None

    def path(self, name: str) -> str:
        """Return the path of one of the run's own files."""
        return f"{self.folder}/{name}"

    def products(self, *rules: str) -> list[str]:
        """Return the records of the products of rules in this run."""
        return [self.path(f"manifests/{products.FOLDER}/{rule}.json") for rule in rules]

    def rules(self) -> Iterator[str]:
        """Yield the rules of an ordinary run that write a record of their products in it."""
        yield from ("create_store", "detect_outliers", "join_weights", "render_report")
        if self.ablates:
            yield "ablate"
        if self.layer_groups == "auto":
            yield "choose_layer_groups"


def builtin_files(source: str) -> list[str]:
    """Return the file of a built-in model or text; nothing for other sources."""
    kind = source_kind(source)
    return [f"{RESOURCES}/{builtin.path(source)}"] if kind == "builtin" else []
