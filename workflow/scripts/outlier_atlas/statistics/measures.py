"""How the values of a site and layer are distributed: kurtosis, norms, ratios, quantization."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from outlier_atlas.statistics.codes import Float64, Int64
from outlier_atlas.statistics.moments import Moments
from outlier_atlas.statistics.quantization import FORMATS, KEPT, QuantizationSummary
from outlier_atlas.statistics.sparse import CodeHistogram
from outlier_atlas.statistics.summary import Summary


@dataclass
class LayerMeasures:
    """Accumulates summaries of one site and layer; moments to the rounding of float64.

    Attributes:
        channels: length of the channel axis.
        sequences: number of sequences of the run.
        moments: (channel,): over tokens.
        kurtosis_sum, kurtosis_tokens: (sequence,): over tokens, of the kurtosis over channels.
        kurtosis_max: (sequence,): the largest of a token; NaN of none.
        ratios: of tokens max|x| / median|x| over channels.
        ratio_max: (sequence,): the largest; NaN of none.
        norms: L2 norms of tokens.
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
        """Take the summary of a tile."""
        s = summary
        self.moments.update(
            (s.channel_count.astype(np.float64), s.channel_mean, s.channel_m2, s.channel_m3,
             s.channel_m4)
        )  # fmt: skip
        kurtosis = s.token_kurtosis[~np.isnan(s.token_kurtosis)]
        self.kurtosis_sum[s.sequence] += kurtosis.sum()
        self.kurtosis_tokens[s.sequence] += len(kurtosis)
        _raise(self.kurtosis_max, s.sequence, kurtosis)
        there = s.token_channel >= 0
        largest = np.abs(s.token_value[there].astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = largest / s.token_median[there]
        ratios = ratios[~np.isnan(ratios)]  # a token of nothing but zeros has none
        self.ratios.add(ratios)
        _raise(self.ratio_max, s.sequence, ratios)
        self.norms.add(np.sqrt(s.token_square[there]))

    def merge(self, other: LayerMeasures) -> None:
        """Take what another accumulator of the same site and layer has seen of other tokens."""
        self.moments.merge(other.moments)
        self.kurtosis_sum += other.kurtosis_sum
        self.kurtosis_tokens += other.kurtosis_tokens
        self.kurtosis_max = np.fmax(self.kurtosis_max, other.kurtosis_max)
        self.ratios.merge(other.ratios)
        self.ratio_max = np.fmax(self.ratio_max, other.ratio_max)
        self.norms.merge(other.norms)

    @property
    def kurtosis_of_rms(self) -> float:
        """He's kurtosis: mean s^4 / (mean s^2)^2 over channels, s the RMS of a channel."""
        squares = self.moments.mean_square
        known = squares[~np.isnan(squares)]
        mean = known.mean() if len(known) else 0.0
        return float((known**2).mean() / mean**2) if mean else float("nan")


def _raise(largest: Float64, sequence: int, numbers: Float64) -> None:
    largest[sequence] = np.fmax.reduce(numbers, initial=largest[sequence])


@dataclass
class QuantizationErrors:
    """Accumulates errors of the tiles of one site and layer.

    Attributes:
        sequences: number of sequences of the run.
        outlier_channels: (sequence,): the most that a tile has; NaN of none.
        values, squares, errors, square_errors: sums of those of the tiles.
    """

    sequences: int
    outlier_channels: Float64 = field(init=False)
    values: int = 0
    squares: float = 0.0
    errors: Float64 = field(default_factory=lambda: np.zeros(len(FORMATS) * len(KEPT)))
    square_errors: Float64 = field(default_factory=lambda: np.zeros(len(FORMATS) * len(KEPT)))

    def __post_init__(self) -> None:
        self.outlier_channels = np.full(self.sequences, np.nan)

    def update(self, summary: QuantizationSummary) -> None:
        """Take the summary of a tile."""
        most = np.fmax(self.outlier_channels[summary.sequence], summary.outlier_channels)
        self.outlier_channels[summary.sequence] = most
        self._add(summary)

    def merge(self, other: QuantizationErrors) -> None:
        """Take what another accumulator of the same site and layer has seen."""
        self.outlier_channels = np.fmax(self.outlier_channels, other.outlier_channels)
        self._add(other)

    def _add(self, summary: QuantizationSummary | QuantizationErrors) -> None:
        self.values += summary.values
        self.squares += summary.squares
        self.errors += summary.errors
        self.square_errors += summary.square_errors
