"""The interface of a `measure.py`: what the detection stage asks of a criterion or measure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast

from outlier_atlas.criteria.columns import Columns
from outlier_atlas.criteria.description import Description
from outlier_atlas.criteria.exclusion import Exclusion
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.sites import CHANNEL_SITES
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.sequences import ValuesOf
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.layout import Layout
from outlier_atlas.tables.table import Table

Place = tuple[str, int]
"""Site and layer."""

Taker = Callable[[Any], None]
"""Takes the summary of a tile."""

WeightsOf = Callable[[Sequence[tuple[int, int | None, int, int]]], Sequence[float | None]]
"""Reads weights of down projections, by layer, routed expert (or None), row and column."""


@dataclass(frozen=True)
class Context:
    """A run as its measures see it.

    Attributes:
        settings: the section `detection`.
        layout: the layout of the store.
        tokens: the token store.
        special_ids: ids of the tokenizer's special tokens.
        exclusion: the tokens that are left out.
        bootstrap: the draws behind all intervals.
        values_of: gives what reads the values of a tile again, or None where a site is not stored.
        weights_of: reads weights of down projections.
    """

    settings: DetectionSettings
    layout: Layout
    tokens: TokenStore
    special_ids: Collection[int]
    exclusion: Exclusion
    bootstrap: Bootstrap
    values_of: Callable[[str, int], ValuesOf | None]
    weights_of: WeightsOf

    @property
    def places(self) -> list[Place]:
        """Every measured site with channels, in each measured layer."""
        sites = [site for site in self.layout.sites if site in CHANNEL_SITES]
        return [(site, layer) for site in sites for layer in self.layout.layers]

    @property
    def sequences(self) -> int:
        """The number of sequences."""
        return self.tokens.sequences


class Finite(NamedTuple):
    """How much of a site and layer is finite.

    Attributes:
        left_out: values that are NaN or infinite.
        some: whether a value is finite.
    """

    site: str
    layer: int
    left_out: int
    some: bool


class Measure(ABC):
    """What detection makes of a run for one criterion or measure.

    The summaries of every chunk go to what `takers` names; then `end_chunk` is called. When all
    chunks were seen, `read` may read arrays of the store, and `tables` gives the result.

    Attributes:
        description: name, tables and settings.
        summaries: which summaries the takers take.
        excludes: whether `detection.exclude` leaves tokens out of its numbers.
    """

    description: ClassVar[Description]
    summaries: ClassVar[Literal["tiles", "quantization"]] = "tiles"
    excludes: ClassVar[bool] = True

    def __init__(self, context: Context, others: Measures) -> None:
        """Make the accumulators.

        Args:
            others: the measures that come earlier in the registry.
        """
        self.context = context
        self.others = others

    def takers(self) -> Iterable[tuple[Place, Taker]]:
        """What takes the summaries of a site and layer; by default nothing."""
        return ()

    def end_chunk(self) -> None:  # noqa: B027 - a default
        """Take note that the summaries of a chunk are complete."""

    def read(self, arrays: Arrays) -> None:  # noqa: B027 - a default
        """Read arrays of the store, for a measure that has no summaries.

        Raises:
            DamagedChunkError: a chunk is damaged or missing.
        """

    def finite(self) -> Iterable[Finite]:
        """How much is finite of the sites that this measure alone counts; by default none."""
        return ()

    @abstractmethod
    def tables(self) -> Iterator[tuple[Table, Columns]]:
        """Each table with its columns; without rows where nothing was measured."""

    def parameters(self, table: Table) -> dict[str, Any]:
        """The settings that the numbers of a table depend on, by their blocks."""
        blocks = {*self.description.settings, *(["bootstrap"] if table.has_intervals else [])}
        return self.context.settings.model_dump(mode="json", include=blocks) if blocks else {}


Kind = TypeVar("Kind", bound=Measure)


class Measures:
    """The measures of a run, in the order of the registry."""

    def __init__(self, kinds: Iterable[type[Measure]], context: Context) -> None:
        self._made: dict[type[Measure], Measure] = {}
        for kind in kinds:
            self._made[kind] = kind(context, self)

    def __iter__(self) -> Iterator[Measure]:
        return iter(self._made.values())

    def of(self, kind: type[Kind]) -> Kind:
        """The measure of a class, for one that builds on it."""
        return cast(Kind, self._made[kind])


@dataclass(frozen=True)
class Criterion:
    """A criterion as a run defines it.

    Attributes:
        name: as in the configuration.
        sites: on which it is defined.
        missing: those of its sites that were not measured.
        definition: in one sentence, with its thresholds and its source.
    """

    name: str
    sites: tuple[str, ...]
    missing: tuple[str, ...]
    definition: str

    @property
    def measured(self) -> bool:
        """Whether all of its sites were measured."""
        return not self.missing


class CriterionMeasure(Measure):
    """A measure that decides what is an outlier: it has a definition, and findings.

    Attributes:
        any_site: whether one site with finite values is enough to look at a layer.
        criterion: the definition in this run.
    """

    any_site: ClassVar[bool] = False

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        layout = context.layout
        self.criterion = self.define(context.settings, layout.sites, layout.sink_tokens)

    @classmethod
    def define(
        cls, settings: DetectionSettings, measured: Collection[str], sink_tokens: int
    ) -> Criterion:
        """The criterion, given the measured sites.

        Args:
            sink_tokens: first tokens of a sequence that `attn_sink` was measured on.
        """
        sites = cls.sites(settings, measured)
        missing = tuple(site for site in sites if site not in measured)
        left_out = settings.exclude.sentence if cls.excludes else ""
        definition = f"{cls.definition(settings, sink_tokens)} {left_out}".strip()
        return Criterion(cls.description.name, sites, missing, definition)

    @classmethod
    @abstractmethod
    def sites(cls, settings: DetectionSettings, measured: Collection[str]) -> tuple[str, ...]:
        """The sites on which it is defined."""

    @classmethod
    @abstractmethod
    def definition(cls, settings: DetectionSettings, sink_tokens: int) -> str:
        """The definition in one sentence, with its thresholds and its source."""

    @property
    def layers(self) -> Sequence[int]:
        """The layers that it looks at; none where a site was not measured."""
        return self.context.layout.layers if self.criterion.measured else ()

    @abstractmethod
    def findings(self) -> int:
        """The number of findings."""


def define(
    kinds: Iterable[type[Measure]],
    settings: DetectionSettings,
    measured: Collection[str],
    sink_tokens: int,
) -> Mapping[str, Criterion]:
    """The criteria among some measures, by name."""
    criteria = [kind for kind in kinds if issubclass(kind, CriterionMeasure)]
    each = [kind.define(settings, measured, sink_tokens) for kind in criteria]
    return {one.name: one for one in each}
