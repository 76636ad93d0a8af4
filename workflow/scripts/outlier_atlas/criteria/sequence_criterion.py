"""Criteria that evaluate one whole sequence of a site and layer at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Generic

from outlier_atlas.criteria.measure import Context, CriterionMeasure, Measures, Place, Taker
from outlier_atlas.statistics.sequences import BySequence, Result, WholeSequence


class SequenceCriterion(CriterionMeasure, Generic[Result]):
    """A criterion on one site whose findings in a sequence depend on all of its tokens.

    Attributes:
        site: the site.
        of_layers: the findings by layer; empty if the site was not measured.
    """

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        (self.site,) = self.criterion.sites
        starts = context.tokens.sequence_starts
        self.of_layers = {layer: BySequence(starts, self.decider(layer)) for layer in self.layers}

    @abstractmethod
    def decider(self, layer: int) -> Callable[[WholeSequence], Iterable[Result]]:
        """Return a function that yields the findings in a sequence of a layer."""

    def takers(self) -> Iterable[tuple[Place, Taker]]:
        return (((self.site, layer), each.update) for layer, each in self.of_layers.items())

    @cached_property
    def results(self) -> list[tuple[int, Result]]:
        """The findings with their layers, in the order of layers."""
        return [
            (layer, result) for layer, each in self.of_layers.items() for result in each.results()
        ]

    def findings(self) -> int:
        return len(self.results)
