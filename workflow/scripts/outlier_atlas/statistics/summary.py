"""The summary of a tile: all that the criteria and measures ask of it, and no threshold of theirs.

A tile is the tokens of one sequence within one chunk, of one site and layer. Its summary is made
once, where the values are: in extraction, on the device, of what is not stored; in detection of
what is. Everything else works from summaries, so that another threshold reads no values.

Written in torch for whatever device the values are on. Maxima, counts and medians are exact; sums
are float64, and the same values give the same bits wherever one thread adds them up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import CODES, Float32, Float64, Int64
from outlier_atlas.statistics.moments import Powers, merged

Int32 = NDArray[np.int32]

TOP = 3
"""The largest values that are kept of a tile."""

ROWS = 128
"""Tokens whose float64 values are in hand at once: they stay in a core's cache."""


@dataclass(frozen=True)
class Place:
    """Which tokens a tile holds.

    Attributes:
        sequence: number of the sequence.
        start: index of the tile's first token along the token axis.
        tokens: how many, those that are left out of the statistics among them.
    """

    sequence: int
    start: int
    tokens: int


@dataclass(frozen=True)
class Summary:
    """What is known of a tile.

    Tokens are numbered from the tile's first; -1 where there is none. Values that are NaN or
    infinite are counted, and left out of all else.

    Attributes:
        sequence, start, tokens: its `Place`.
        values, nan, infinite: counts of the tokens that are not left out.
        magnitudes: sum of |x|.
        floor: values below it are not among the exceedances.
        top: the largest |x|, descending, at most `TOP`.
        codes, code_counts: bfloat16 codes of |x|, ascending, and how often each occurs.
        channel_value: (channel,): largest in |x|, with its sign; NaN where there is none.
        channel_token: (channel,): its token, the first of equals.
        channel_count, channel_mean, channel_m2, channel_m3, channel_m4: (channel,): number, mean
            and sums of powers of the distances from the mean.
        token: (token,): the tokens that are not left out.
        token_value, token_channel: (token,): largest in |x|, with its sign; the lowest channel of
            equals.
        token_square: (token,): sum of squares.
        token_median: (token,): median of |x| over channels, the lower of the two middle values.
        token_kurtosis: (token,): mu4 / sigma^4 over channels; NaN where all are equal.
        high_token, high_channel, high_value: the exceedances, |x| >= floor, by token and channel.
    """

    sequence: int
    start: int
    tokens: int
    values: int
    nan: int
    infinite: int
    magnitudes: float
    floor: float
    top: Float32
    codes: NDArray[np.uint16]
    code_counts: Int64
    channel_value: Float32
    channel_token: Int32
    channel_count: Int64
    channel_mean: Float64
    channel_m2: Float64
    channel_m3: Float64
    channel_m4: Float64
    token: Int32
    token_value: Float32
    token_channel: Int32
    token_square: Float64
    token_median: Float32
    token_kurtosis: Float64
    high_token: Int32
    high_channel: Int32
    high_value: Float32

    @property
    def stop(self) -> int:
        """Index of the token after the tile's last."""
        return self.start + self.tokens


def summarize(
    values_TC: torch.Tensor, place: Place, floor: float, kept: NDArray[np.bool_] | None = None
) -> Summary:
    """The summary of a tile.

    Args:
        values_TC: (token, channel), on any device, in the dtype that the model computed in.
        place: where it is.
        floor: see `Summary.floor`.
        kept: (token,): the tokens that count; None where all do.
    """
    assert len(values_TC) == place.tokens
    x = values_TC.float().contiguous()  # sums of another layout would have other last bits
    token = np.arange(place.tokens, dtype=np.int32)
    if kept is not None:
        token = token[kept]
        x = x[torch.from_numpy(token.astype(np.int64)).to(x.device)]
    # x - x is NaN where x is NaN or infinite.
    finite = None if bool(torch.isfinite(x.sum())) else x.isfinite()
    if finite is not None and bool(finite.all()):
        finite = None  # the sum alone overflowed
    a = x.abs() if finite is None else x.abs().masked_fill_(~finite, -1)
    codes, counts = _histogram(a, finite)
    channel_value, channel_token = _largest(x, a, 0)
    token_value, token_channel = _largest(x, a, 1)
    means = _channel_moments(x, finite)
    square, kurtosis = _token_moments(x, finite)
    high = _exceedances(x, a, floor)
    return Summary(
        sequence=place.sequence,
        start=place.start,
        tokens=place.tokens,
        values=x.numel(),
        nan=0 if finite is None else int(x.isnan().sum()),
        infinite=0 if finite is None else int(x.isinf().sum()),
        magnitudes=_total(a, finite),
        floor=floor,
        top=_top(a),
        codes=codes,
        code_counts=counts,
        channel_value=channel_value,
        channel_token=np.where(channel_token < 0, -1, np.append(token, -1)[channel_token]),
        channel_count=means[0],
        channel_mean=means[1],
        channel_m2=means[2],
        channel_m3=means[3],
        channel_m4=means[4],
        token=token,
        token_value=token_value,
        token_channel=token_channel,
        token_square=square,
        token_median=_lower_medians(a, finite),
        token_kurtosis=kurtosis,
        high_token=token[high[0]],
        high_channel=high[1],
        high_value=high[2],
    )


def _histogram(a: torch.Tensor, finite: torch.Tensor | None) -> tuple[NDArray[np.uint16], Int64]:
    values = a.flatten() if finite is None else a[finite]
    # Rounded to nearest even; what is above the largest bfloat16 gets the code of infinity.
    histogram = torch.bincount(values.bfloat16().view(torch.int16), minlength=CODES).cpu().numpy()
    codes = np.flatnonzero(histogram)
    return codes.astype(np.uint16), histogram[codes]


def _largest(x: torch.Tensor, a: torch.Tensor, axis: int) -> tuple[Float32, Int32]:
    """Along an axis the values largest in |x|, and the index of the first of equals."""
    if not a.shape[axis]:
        others = a.shape[1 - axis]
        return np.full(others, np.nan, np.float32), np.full(others, -1, np.int32)
    magnitudes, index = a.max(axis)
    values = x.gather(axis, index.unsqueeze(axis)).squeeze(axis)
    there = (magnitudes >= 0).cpu().numpy()
    return (
        np.where(there, values.cpu().numpy(), np.float32(np.nan)),
        np.where(there, index.cpu().numpy(), -1).astype(np.int32),
    )


def _top(a: torch.Tensor) -> Float32:
    # The largest values lie in the rows with the largest maxima, one row a value at most.
    if not len(a):
        return np.zeros(0, np.float32)
    rows = a[a.amax(1).topk(min(TOP, len(a))).indices].flatten()
    top = rows.topk(min(TOP, len(rows))).values.cpu().numpy()
    return np.asarray(top[top >= 0], np.float32)


def _total(a: torch.Tensor, finite: torch.Tensor | None) -> float:
    magnitudes = a if finite is None else a.clamp(min=0)
    return float(magnitudes.sum(1, dtype=torch.float64).sum())


def _blocks(x: torch.Tensor, finite: torch.Tensor | None) -> Iterator[_Block]:
    """The values, some tokens at a time on the host."""
    rows = ROWS if x.device.type == "cpu" else max(1, len(x))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        there = None if finite is None else finite[part]
        yield _Block.of(x[part].double(), there)


@dataclass(frozen=True)
class _Block:
    """float64 values, 0 where they are not finite, and how many are along each axis."""

    values: torch.Tensor
    finite: torch.Tensor | None

    @classmethod
    def of(cls, values: torch.Tensor, finite: torch.Tensor | None) -> _Block:
        return cls(values if finite is None else values.masked_fill_(~finite, 0), finite)

    def centred(self, axis: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Number and mean along an axis, and the distances from the mean."""
        if self.finite is None:
            size = self.values.shape[axis]
            n = self.values.new_full((self.values.shape[1 - axis],), size)
        else:
            n = self.finite.sum(axis, dtype=torch.float64)
        mean = self.values.sum(axis) / n.clamp(min=1)
        distances = self.values - mean.unsqueeze(axis)
        if self.finite is not None:
            distances.masked_fill_(~self.finite, 0)
        return n, mean, distances


def _channel_moments(x: torch.Tensor, finite: torch.Tensor | None) -> list[NDArray[Any]]:
    zeros = x.new_zeros((5, x.shape[1]), dtype=torch.float64)
    powers: Powers = (zeros[0], zeros[1], zeros[2], zeros[3], zeros[4])
    for block in _blocks(x, finite):
        n, mean, d = block.centred(0)
        squares = d * d
        block_powers = n, mean, squares.sum(0), (squares * d).sum(0), squares.square_().sum(0)
        powers = merged(powers, block_powers)
    count, *others = (power.cpu().numpy() for power in powers)
    return [count.astype(np.int64), *others]


def _token_moments(x: torch.Tensor, finite: torch.Tensor | None) -> tuple[Float64, Float64]:
    """Per token the sum of squares, and the kurtosis over channels."""
    square, kurtosis = [np.zeros(0)], [np.zeros(0)]
    for block in _blocks(x, finite):
        n, _, d = block.centred(1)
        square.append(block.values.square().sum(1).cpu().numpy())
        m2 = d.square_().sum(1)
        kurtosis.append((n * d.square_().sum(1) / (m2 * m2)).cpu().numpy())
    return np.concatenate(square), np.concatenate(kurtosis)


def _lower_medians(a: torch.Tensor, finite: torch.Tensor | None) -> Float32:
    middle = (a.shape[1] - 1) // 2
    if finite is not None:
        counts = finite.sum(1)
        ordered = a.masked_fill(~finite, torch.inf).sort(1).values
        index = ((counts - 1) // 2).clamp(min=0).unsqueeze(1)
        medians = ordered.gather(1, index).squeeze(1).masked_fill(counts == 0, torch.nan)
        return np.asarray(medians.cpu().numpy())
    if a.device.type == "cpu":  # three times as fast as torch, and the same value
        return np.partition(a.numpy(), middle, axis=1)[:, middle].copy()
    return np.asarray(a.kthvalue(middle + 1, 1).values.cpu().numpy())


def _exceedances(x: torch.Tensor, a: torch.Tensor, floor: float) -> tuple[Int64, Int32, Float32]:
    """Rows, channels and values with |x| >= floor."""
    if not len(a):
        return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
    rows = (a.amax(1) >= floor).nonzero().squeeze(1)
    within, channels = (a[rows] >= floor).nonzero(as_tuple=True)
    of_values = rows[within]
    values = x[of_values, channels].cpu().numpy()
    return of_values.cpu().numpy(), channels.cpu().numpy().astype(np.int32), values
