"""The interface of a `measure.py`, which computes the tables of a criterion or measure."""

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
"""A function that accumulates the summary of a tile."""

WeightsOf = Callable[[Sequence[tuple[int, int | None, int, int]]], Sequence[float | None]]
"""A function that reads weights of down projections.

Its argument lists layer, routed expert (or None), row and column of each weight.
"""


@dataclass(frozen=True)
class Context:
    """The inputs that all measures of a run share.

    Attributes:
        settings: the section `detection` of the configuration.
        layout: the layout of the store.
        tokens: the token store.
        special_ids: ids of the tokenizer's special tokens.
        exclusion: the tokens that are excluded.
        bootstrap: the draws that all intervals use.
        values_of: returns, for a site and layer, a function that reads the values of a tile again;
            None if the site is not stored.
        weights_of: a function that reads weights of down projections.
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
    """The number of values of a site and layer that are not finite.

    Attributes:
        site: the site.
        layer: the layer.
        left_out: number of values that are NaN or infinite.
        some: whether at least one value is finite.
    """

    site: str
    layer: int
    left_out: int
    some: bool


class Measure(ABC):
    """The computation of one criterion or measure over a run.

    The detection stage passes the summaries of each chunk to the functions of `takers`, then calls
    `end_chunk`. After the last chunk it calls `read`, which may read arrays of the store. `tables`
    yields the result.

    Attributes:
        description: name, tables and settings of the criterion or measure.
        summaries: the kind of summaries that the takers accept.
        excludes: whether `detection.exclude` applies to the numbers.
    """

    description: ClassVar[Description]
    summaries: ClassVar[Literal["tiles", "quantization"]] = "tiles"
    excludes: ClassVar[bool] = True

    def __init__(self, context: Context, others: Measures) -> None:
        """Create the accumulators.

        Args:
            context: the inputs that all measures share.
            others: the measures that are earlier in the registry.
        """
        self.context = context
        self.others = others

    def takers(self) -> Iterable[tuple[Place, Taker]]:
        """Return the functions that take summaries, each with its place; by default none."""
        return ()

    def end_chunk(self) -> None:  # noqa: B027 - a default
        """Handle the end of a chunk, after all of its summaries; by default do nothing."""

    def read(self, arrays: Arrays) -> None:  # noqa: B027 - a default
        """Read arrays of the store; by default do nothing.

        Only measures that need more than summaries override this method.

        Raises:
            DamagedChunkError: a chunk is damaged or missing.
        """

    def finite(self) -> Iterable[Finite]:
        """Return the counts of values that are not finite; by default none.

        Each site is counted by one measure only.
        """
        return ()

    @abstractmethod
    def tables(self) -> Iterator[tuple[Table, Columns]]:
        """Yield each table with its columns; a table has no rows if nothing was measured."""

    def parameters(self, table: Table) -> dict[str, Any]:
        """Return the settings that the numbers of a table depend on, by block."""
        blocks = {*self.description.settings, *(["bootstrap"] if table.has_intervals else [])}
        return self.context.settings.model_dump(mode="json", include=blocks) if blocks else {}


Kind = TypeVar("Kind", bound=Measure)


class Measures:
    """The measures of a run, in the order of the registry."""

    def __init__(self, kinds: Iterable[type[Measure]], context: Context) -> None:
        self._measures: dict[type[Measure], Measure] = {}
        for kind in kinds:
            self._measures[kind] = kind(context, self)

    def __iter__(self) -> Iterator[Measure]:
        return iter(self._measures.values())

    def of(self, kind: type[Kind]) -> Kind:
        """Return the measure of a class, for a measure that depends on it."""
        return cast(Kind, self._measures[kind])


@dataclass(frozen=True)
class Criterion:
    """A criterion as a run defines it.

    Attributes:
        name: name of the criterion, as in the configuration.
        sites: sites on which the criterion is defined.
        missing: sites of the criterion that were not measured.
        definition: definition in one sentence, with thresholds and source.
    """

    name: str
    sites: tuple[str, ...]
    missing: tuple[str, ...]
    definition: str

    @property
    def measured(self) -> bool:
        """Whether all sites of the criterion were measured."""
        return not self.missing


class CriterionMeasure(Measure):
    """A measure that decides which values are outliers, with a definition and findings.

    Attributes:
        any_site: whether one site with finite values is enough to evaluate a layer.
        criterion: the criterion as this run defines it.
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
        """Return the criterion as a run defines it.

        Args:
            settings: the section `detection` of the configuration.
            measured: the measured sites.
            sink_tokens: number of first tokens of a sequence that `attn_sink` measures.
        """
        sites = cls.sites(settings, measured)
        missing = tuple(site for site in sites if site not in measured)
        left_out = settings.exclude.sentence if cls.excludes else ""
        definition = f"{cls.definition(settings, sink_tokens)} {left_out}".strip()
        return Criterion(cls.description.name, sites, missing, definition)

    @classmethod
    @abstractmethod
    def sites(cls, settings: DetectionSettings, measured: Collection[str]) -> tuple[str, ...]:
        """Return the sites on which the criterion is defined."""

    @classmethod
    @abstractmethod
    def definition(cls, settings: DetectionSettings, sink_tokens: int) -> str:
        """Return the definition in one sentence, with thresholds and source."""

    @property
    def layers(self) -> Sequence[int]:
        """The layers that the criterion evaluates; none if a site was not measured."""
        return self.context.layout.layers if self.criterion.measured else ()

    @abstractmethod
    def findings(self) -> int:
        """Return the number of findings."""


def define(
    kinds: Iterable[type[Measure]],
    settings: DetectionSettings,
    measured: Collection[str],
    sink_tokens: int,
) -> Mapping[str, Criterion]:
    """Return the criteria among some measures, by name."""
    criteria = [kind for kind in kinds if issubclass(kind, CriterionMeasure)]
    each = [kind.define(settings, measured, sink_tokens) for kind in criteria]
    return {criterion.name: criterion for criterion in each}
