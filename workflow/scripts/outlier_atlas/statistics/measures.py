"""How the values of a site and layer are distributed: kurtosis, norms, ratios, quantization."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from outlier_atlas.statistics.codes import Float64, Int64, bfloat16_codes, from_code, lower_quantile
from outlier_atlas.statistics.moments import Moments
from outlier_atlas.statistics.quantization import FORMATS, KEPT, QuantizationSummary
from outlier_atlas.statistics.sparse import SparseCounts
from outlier_atlas.statistics.summary import Summary


class CodeHistogram:
    """Accumulates non-negative numbers by bfloat16 code: quantiles to a relative 2^-8."""

    def __init__(self) -> None:
        self._counts = SparseCounts()

    def add(self, numbers: Float64) -> None:
        """Add numbers; infinity may be among them."""
        with np.errstate(over="ignore"):
            codes = bfloat16_codes(numbers.astype(np.float32)).astype(np.int64)
        self._counts.add(*np.unique(codes, return_counts=True))

    def merge(self, other: CodeHistogram) -> None:
        """Take what another has counted."""
        self._counts.merge(other._counts)

    def quantile(self, quantile: float) -> float:
        """The number at a quantile, the lower of two neighbours; NaN of none."""
        codes, counts = self._counts.items()
        return from_code(lower_quantile(codes, counts, quantile)) if len(codes) else float("nan")


@dataclass
class LayerMeasures:
    """Accumulates summaries of one site and layer; moments to the rounding of float64.

    Attributes:
        channels: length of the channel axis.
        sequences: number of sequences of the run.
        moments: (channel,): over tokens.
        kurtosis_sum, kurtosis_tokens: (sequence,): over tokens, of the kurtosis over channels.
        kurtosis_max: the largest of a token; NaN of none.
        ratios: of tokens max|x| / median|x| over channels.
        ratio_max: the largest; NaN of none.
        norms: L2 norms of tokens.
    """

    channels: int
    sequences: int
    moments: Moments = field(init=False)
    kurtosis_sum: Float64 = field(init=False)
    kurtosis_tokens: Int64 = field(init=False)
    kurtosis_max: float = float("nan")
    ratios: CodeHistogram = field(default_factory=CodeHistogram)
    ratio_max: float = float("nan")
    norms: CodeHistogram = field(default_factory=CodeHistogram)

    def __post_init__(self) -> None:
        self.moments = Moments.none(self.channels)
        self.kurtosis_sum = np.zeros(self.sequences)
        self.kurtosis_tokens = np.zeros(self.sequences, np.int64)

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
        self.kurtosis_max = _larger(self.kurtosis_max, kurtosis)
        there = s.token_channel >= 0
        largest = np.abs(s.token_value[there].astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = largest / s.token_median[there]
        ratios = ratios[~np.isnan(ratios)]  # a token of nothing but zeros has none
        self.ratios.add(ratios)
        self.ratio_max = _larger(self.ratio_max, ratios)
        self.norms.add(np.sqrt(s.token_square[there]))

    def merge(self, other: LayerMeasures) -> None:
        """Take what another accumulator of the same site and layer has seen of other tokens."""
        self.moments.merge(other.moments)
        self.kurtosis_sum += other.kurtosis_sum
        self.kurtosis_tokens += other.kurtosis_tokens
        self.kurtosis_max = _larger(self.kurtosis_max, np.array([other.kurtosis_max]))
        self.ratios.merge(other.ratios)
        self.ratio_max = _larger(self.ratio_max, np.array([other.ratio_max]))
        self.norms.merge(other.norms)

    @property
    def kurtosis_of_rms(self) -> float:
        """He's kurtosis: mean s^4 / (mean s^2)^2 over channels, s the RMS of a channel."""
        squares = self.moments.mean_square
        known = squares[~np.isnan(squares)]
        mean = known.mean() if len(known) else 0.0
        return float((known**2).mean() / mean**2) if mean else float("nan")


def _larger(largest: float, numbers: Float64) -> float:
    return float(np.fmax.reduce(np.append(numbers, largest)))


@dataclass
class QuantizationErrors:
    """Accumulates errors of the tiles of one site and layer.

    Attributes:
        outlier_channels: the most that a tile has.
        values, squares, errors, square_errors: sums of those of the tiles.
    """

    outlier_channels: int = 0
    values: Int64 = field(default_factory=lambda: np.zeros(len(KEPT), np.int64))
    squares: Float64 = field(default_factory=lambda: np.zeros(len(KEPT)))
    errors: Float64 = field(default_factory=lambda: np.zeros(len(FORMATS) * len(KEPT)))
    square_errors: Float64 = field(default_factory=lambda: np.zeros(len(FORMATS) * len(KEPT)))

    def update(self, summary: QuantizationSummary | QuantizationErrors) -> None:
        """Take the summary of a tile."""
        self.outlier_channels = max(self.outlier_channels, summary.outlier_channels)
        self.values += summary.values
        self.squares += summary.squares
        self.errors += summary.errors
        self.square_errors += summary.square_errors

    def merge(self, other: QuantizationErrors) -> None:
        """Take what another accumulator of the same site and layer has seen."""
        self.update(other)
