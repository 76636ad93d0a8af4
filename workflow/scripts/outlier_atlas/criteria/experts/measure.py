"""Largest output and number of tokens of each routed expert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from outlier_atlas.criteria.columns import (
    Columns,
    interval_columns,
    located,
    or_null,
)
from outlier_atlas.criteria.exclusion import Exclusion
from outlier_atlas.criteria.experts.tables import DESCRIPTION, EXPERT_MAGNITUDES
from outlier_atlas.criteria.measure import (
    Context,
    Finite,
    Measure,
    Measures,
    Place,
    Taker,
)
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.settings.sites import EXPERT_OUT
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.experts import ExpertMagnitudes
from outlier_atlas.tables.table import Table


class ExpertsMeasure(Measure):
    """Magnitudes of the outputs of routed experts.

    Attributes:
        of_layers: accumulator of each layer; empty if `expert_out` was not measured.
    """

    description = DESCRIPTION

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        layout = context.layout
        self.of_layers = {
            layer: ExpertMagnitudes(layout.experts, context.sequences)
            for layer in (layout.layers if EXPERT_OUT in layout.sites else ())
        }

    def takers(self) -> Iterable[tuple[Place, Taker]]:
        return (((EXPERT_OUT, layer), each.update) for layer, each in self.of_layers.items())

    def finite(self) -> Iterable[Finite]:
        for layer, each in self.of_layers.items():
            left_out = int(each.nan.sum() + each.infinite.sum())
            yield Finite(EXPERT_OUT, layer, left_out, not bool(np.isnan(each.values).all()))

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        context = self.context
        min_tokens = context.settings.experts.min_tokens
        yield (
            EXPERT_MAGNITUDES,
            _experts(
                self.of_layers, context.tokens, context.exclusion, min_tokens, context.bootstrap
            ),
        )


def _experts(
    layers: Mapping[int, ExpertMagnitudes],
    tokens: TokenStore,
    exclusion: Exclusion,
    min_tokens: int,
    bootstrap: Bootstrap,
) -> Columns:
    """Return the columns of the table of the largest output of each routed expert."""
    each = [(layer, m, expert) for layer, m in layers.items() for expert in range(m.experts)]
    of_sequences = [m.routed[:, expert] for _, m, expert in each]
    routed = [int(counts.sum()) for counts in of_sequences]
    kept = exclusion.kept_of_sequences(tokens) if layers else np.zeros(0, np.int64)
    all_kept = int(kept.sum())
    largest = [int(m.tokens[expert]) for _, m, expert in each]
    channels = [int(m.channels[expert]) for _, m, expert in each]
    return {
        "layer": [layer for layer, _, _ in each],
        "expert": [expert for _, _, expert in each],
        "tokens": routed,
        "token_share": [count / all_kept if all_kept else None for count in routed],
        "enough_tokens": [count >= min_tokens for count in routed],
        "value": or_null([m.values[expert] for _, m, expert in each]),
        "channel": [None if channel < 0 else channel for channel in channels],
        **located(tokens, largest),
        "nan": [int(m.nan[expert]) for _, m, expert in each],
        "infinite": [int(m.infinite[expert]) for _, m, expert in each],
        **interval_columns(
            "token_share", [bootstrap.ratios(counts, kept) for counts in of_sequences]
        ),
        **interval_columns(
            "value", [bootstrap.maxima(m.largest[:, expert]) for _, m, expert in each]
        ),
    }
