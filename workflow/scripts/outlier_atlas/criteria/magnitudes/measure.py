"""Largest values of layers and of channels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from outlier_atlas.criteria.columns import (
    Columns,
    end_columns,
    interval_columns,
    located,
    or_null,
    places,
)
from outlier_atlas.criteria.magnitudes.tables import CHANNEL_MAXIMA, DESCRIPTION, LAYER_MAGNITUDES
from outlier_atlas.criteria.measure import (
    Context,
    Finite,
    Measure,
    Measures,
    Place,
    Taker,
)
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.magnitudes import Magnitudes
from outlier_atlas.statistics.one_pass import TOP
from outlier_atlas.tables.table import Table


class MagnitudesMeasure(Measure):
    """The largest values at each site with channels."""

    description = DESCRIPTION

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        channels = context.layout.sites
        self.of_places = {
            place: Magnitudes(channels[place[0]], context.sequences) for place in context.places
        }

    def takers(self) -> Iterable[tuple[Place, Taker]]:
        return ((place, each.update) for place, each in self.of_places.items())

    def finite(self) -> Iterable[Finite]:
        for (site, layer), each in self.of_places.items():
            yield Finite(site, layer, each.nan + each.infinite, bool(each.top))

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        tokens, bootstrap = self.context.tokens, self.context.bootstrap
        yield LAYER_MAGNITUDES, _layers(self.of_places, tokens, bootstrap)
        yield CHANNEL_MAXIMA, _channels(self.of_places, tokens, bootstrap)


def _layers(
    magnitudes: Mapping[Place, Magnitudes], tokens: TokenStore, bootstrap: Bootstrap
) -> Columns:
    """Return the columns of the table of the largest values of each site and layer."""
    each = list(magnitudes.values())
    tops = [[*m.top, *[None] * TOP][:TOP] for m in each]
    channels = [m.largest_channel for m in each]
    largest = [-1 if c is None else int(m.tokens[c]) for m, c in zip(each, channels, strict=True)]
    return {
        "site": [site for site, _ in magnitudes],
        "layer": [layer for _, layer in magnitudes],
        **{f"top{rank + 1}": [top[rank] for top in tops] for rank in range(TOP)},
        "median": or_null([m.median for m in each]),
        "value": [
            None if c is None else float(m.maxima[c]) for m, c in zip(each, channels, strict=True)
        ],
        "channel": channels,
        **located(tokens, largest),
        "values": [m.values for m in each],
        "nan": [m.nan for m in each],
        "infinite": [m.infinite for m in each],
        **interval_columns("top1", [bootstrap.maxima(m.of_sequences) for m in each]),
    }


def _channels(
    magnitudes: Mapping[Place, Magnitudes], tokens: TokenStore, bootstrap: Bootstrap
) -> Columns:
    """Return the columns of the table of the largest value of each channel."""
    if not magnitudes:
        return {column.name: [] for column in CHANNEL_MAXIMA.columns}
    widths = [m.channels for m in magnitudes.values()]
    ends = np.hstack([m.largest.intervals(bootstrap) for m in magnitudes.values()])
    return {
        "site": np.repeat([site for site, _ in magnitudes], widths),
        "layer": np.repeat([layer for _, layer in magnitudes], widths),
        "channel": np.concatenate([np.arange(width) for width in widths]),
        "value": or_null(np.concatenate([m.maxima for m in magnitudes.values()])),
        **places(tokens, np.concatenate([m.tokens for m in magnitudes.values()])),
        **end_columns("value", (ends[0], ends[1])),
    }
