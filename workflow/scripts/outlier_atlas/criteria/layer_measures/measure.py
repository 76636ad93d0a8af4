"""Kurtosis, norms and ratios of the values of each site and layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from outlier_atlas.criteria.columns import (
    Columns,
    interval_columns,
    or_null,
)
from outlier_atlas.criteria.layer_measures.tables import (
    DESCRIPTION,
    LAYER_MEASURES,
    QUANTILES,
    norm_name,
)
from outlier_atlas.criteria.magnitudes.measure import MagnitudesMeasure
from outlier_atlas.criteria.measure import (
    Context,
    Measure,
    Measures,
    Place,
    Taker,
)
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.codes import Float64, Int64
from outlier_atlas.statistics.magnitudes import Magnitudes
from outlier_atlas.statistics.moments import Moments, together
from outlier_atlas.statistics.sparse import CodeHistogram
from outlier_atlas.statistics.summary import Summary
from outlier_atlas.tables.table import Table


class LayerMeasuresMeasure(Measure):
    """Measures of the distribution of values at each site with channels."""

    description = DESCRIPTION

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        channels = context.layout.sites
        self.of_places = {
            place: LayerMeasures(channels[place[0]], context.sequences) for place in context.places
        }

    def takers(self) -> Iterable[tuple[Place, Taker]]:
        return ((place, each.update) for place, each in self.of_places.items())

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        magnitudes = self.others.of(MagnitudesMeasure).of_places
        yield LAYER_MEASURES, _measures(self.of_places, magnitudes, self.context.bootstrap)


@dataclass
class LayerMeasures:
    """An accumulator for summaries of one site and layer.

    Moments are exact up to the rounding of float64.

    Attributes:
        channels: length of the channel axis.
        sequences: number of sequences of the run.
        moments: moments of each channel over tokens, (channel,).
        kurtosis_sum: sum over tokens of the kurtosis over channels, (sequence,).
        kurtosis_tokens: number of tokens with a kurtosis, (sequence,).
        kurtosis_max: largest kurtosis of a token, (sequence,); NaN without one.
        ratios: histogram of max|x| / median|x| over the channels of each token.
        ratio_max: largest of these ratios, (sequence,); NaN without one.
        norms: histogram of the L2 norms of tokens.
    """

    channels: int
    sequences: int
    moments: Moments = field(init=False)
    kurtosis_sum: Float64 = field(init=False)
    kurtosis_tokens: Int64 = field(init=False)
    kurtosis_max: Float64 = field(init=False)
    ratios: CodeHistogram = field(default_factory=CodeHistogram)
    ratio_max: Float64 = field(init=False)
    norms: CodeHistogram = field(default_factory=CodeHistogram)

    def __post_init__(self) -> None:
        self.moments = Moments.none(self.channels)
        self.kurtosis_sum = np.zeros(self.sequences)
        self.kurtosis_tokens = np.zeros(self.sequences, np.int64)
        self.kurtosis_max, self.ratio_max = np.full((2, self.sequences), np.nan)

    def update(self, summary: Summary) -> None:
        """Add the summary of a tile."""
        s = summary
        self.moments.update(
            (s.channel_count.astype(np.float64), s.channel_mean, s.channel_m2, s.channel_m3,
             s.channel_m4)
        )  # fmt: skip
        kurtosis = s.token_kurtosis[~np.isnan(s.token_kurtosis)]
        self.kurtosis_sum[s.sequence] += kurtosis.sum()
        self.kurtosis_tokens[s.sequence] += len(kurtosis)
        _raise(self.kurtosis_max, s.sequence, kurtosis)
        finite = s.token_channel >= 0
        largest = np.abs(s.token_value[finite].astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = largest / s.token_median[finite]
        ratios = ratios[~np.isnan(ratios)]  # a token with only zeros has no ratio
        self.ratios.add(ratios)
        _raise(self.ratio_max, s.sequence, ratios)
        self.norms.add(np.sqrt(s.token_square[finite]))

    def merge(self, other: LayerMeasures) -> None:
        """Add the contents of an accumulator of other tokens of the same site and layer."""
        self.moments.merge(other.moments)
        self.kurtosis_sum += other.kurtosis_sum
        self.kurtosis_tokens += other.kurtosis_tokens
        self.kurtosis_max = np.fmax(self.kurtosis_max, other.kurtosis_max)
        self.ratios.merge(other.ratios)
        self.ratio_max = np.fmax(self.ratio_max, other.ratio_max)
        self.norms.merge(other.norms)

    @property
    def kurtosis_of_rms(self) -> float:
        """Kurtosis of He et al.: mean s^4 / (mean s^2)^2 over channels, s the RMS of a channel."""
        squares = self.moments.mean_square
        known = squares[~np.isnan(squares)]
        mean = known.mean() if len(known) else 0.0
        return float((known**2).mean() / mean**2) if mean else float("nan")


def _raise(largest: Float64, sequence: int, numbers: Float64) -> None:
    largest[sequence] = np.fmax.reduce(numbers, initial=largest[sequence])


def _measures(
    measures: Mapping[Place, LayerMeasures],
    magnitudes: Mapping[Place, Magnitudes],
    bootstrap: Bootstrap,
) -> Columns:
    """Return the columns of the table of measures, with a row for each site and layer."""
    places, each = list(measures), list(measures.values())
    maxima = [magnitudes[place].of_sequences.astype(np.float64) for place in places]
    tops = [max(magnitudes[place].top, default=np.nan) for place in places]
    kurtosis, rms = _of_tensors(measures)
    norms = np.reshape([m.norms.quantiles(*QUANTILES) for m in each], (-1, len(QUANTILES)))
    return {
        "site": [site for site, _ in places],
        "layer": [layer for _, layer in places],
        "tokens": [int(magnitudes[p].values) // magnitudes[p].channels for p in places],
        "kurtosis_token": or_null([_ratio(m.kurtosis_sum, m.kurtosis_tokens) for m in each]),
        "kurtosis_token_max": or_null([_max(m.kurtosis_max) for m in each]),
        "kurtosis_tensor": or_null(kurtosis),
        "kurtosis_channel": or_null([_mean(m.moments.kurtosis) for m in each]),
        "kurtosis_channel_max": or_null([_max(m.moments.kurtosis) for m in each]),
        "kurtosis_rms": or_null([m.kurtosis_of_rms for m in each]),
        "infinity_norm": or_null([_mean(of_sequences) for of_sequences in maxima]),
        "rms": or_null(rms),
        "crest_factor": or_null([t / r if r else np.nan for t, r in zip(tops, rms, strict=True)]),
        "mmr_median": or_null([m.ratios.quantiles(0.5)[0] for m in each]),
        "mmr_max": or_null([_max(m.ratio_max) for m in each]),
        **{norm_name(q): or_null(norms[:, index]) for index, q in enumerate(QUANTILES)},
        **interval_columns(
            "kurtosis_token", [bootstrap.ratios(m.kurtosis_sum, m.kurtosis_tokens) for m in each]
        ),
        **interval_columns("kurtosis_token_max", [bootstrap.maxima(m.kurtosis_max) for m in each]),
        **interval_columns("mmr_max", [bootstrap.maxima(m.ratio_max) for m in each]),
        **interval_columns("infinity_norm", [bootstrap.means(m) for m in maxima]),
    }


def _of_tensors(measures: Mapping[Place, LayerMeasures]) -> tuple[list[float], list[float]]:
    """Return the kurtosis and the RMS of all values of each site and layer."""
    kurtosis, rms = [], []
    # One call for all layers of a site, so that the number of array operations stays small.
    for _, places in groupby(measures, key=lambda place: place[0]):
        whole = together([measures[place].moments for place in places])
        kurtosis += whole.kurtosis.tolist()
        rms += np.sqrt(whole.mean_square).tolist()
    return kurtosis, rms


def _ratio(above: Float64, below: Int64) -> float:
    return float(above.sum() / below.sum()) if below.any() else float("nan")


def _mean(values: Float64) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _max(values: Float64) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else float("nan")
