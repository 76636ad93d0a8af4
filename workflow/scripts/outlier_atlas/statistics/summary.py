"""The summary of a tile: all that the criteria and measures ask of it, and no threshold of theirs.

A tile is the tokens of one sequence within one chunk, of one site and layer. Its summary is made
once, where the values are: in extraction, on the device, of what is not stored; in detection of
what is. Everything else works from summaries, so that another threshold reads no values.

Maxima, counts and medians are exact on every device; sums are float64, and the same values give the
same bits on the same processor or device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.devices.registry import of
from outlier_atlas.statistics.codes import Float32, Float64, Int32, Int64
from outlier_atlas.statistics.one_pass import OnePass


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
        codes, code_counts: codes of |x|, ascending, and how often each occurs.
        codes_are_exact: whether every |x| is the very number that its code stands for, as those of
            bfloat16 are.
        sequence_median: median of |x| over the whole sequence, the lower of the two middle values,
            where codes do not give it exactly; NaN where it is not needed (see `medians`), or where
            the tile is a part of its sequence and the rest was not at hand.
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
    codes_are_exact: bool
    sequence_median: float
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
    x = widened(values_TC)
    token = np.arange(place.tokens, dtype=np.int32)
    if kept is not None:
        token = token[kept]
        x = x[torch.from_numpy(token.astype(np.int64)).to(x.device)]
    found = _one_pass(x, floor)
    channel_token, high_token = found.channel_row, found.high_row
    if kept is not None:
        channel_token, high_token = np.append(token, np.int32(-1))[channel_token], token[high_token]
    return Summary(
        sequence=place.sequence,
        start=place.start,
        tokens=place.tokens,
        values=x.numel(),
        nan=found.nan,
        infinite=found.infinite,
        magnitudes=found.magnitudes,
        floor=floor,
        top=found.top,
        codes=found.codes,
        code_counts=found.code_counts,
        codes_are_exact=found.codes_are_exact,
        sequence_median=np.nan,
        channel_value=found.channel_value,
        channel_token=channel_token,
        channel_count=found.channel_count,
        channel_mean=found.channel_mean,
        channel_m2=found.channel_m2,
        channel_m3=found.channel_m3,
        channel_m4=found.channel_m4,
        token=token,
        token_value=found.token_value,
        token_channel=found.token_channel,
        token_square=found.token_square,
        token_median=found.token_median,
        token_kurtosis=found.token_kurtosis,
        high_token=high_token,
        high_channel=found.high_channel,
        high_value=found.high_value,
    )


def widened(values_TC: torch.Tensor) -> torch.Tensor:
    """The values in float32, on a device that can add them up in float64."""
    # Sums of another order in memory would have other last bits.
    return (values_TC if of(values_TC).has_float64 else values_TC.cpu()).float().contiguous()


def on_host(tensor: torch.Tensor) -> bool:
    """Whether numpy can have a tensor's memory."""
    return of(tensor).is_host


def _one_pass(x: torch.Tensor, floor: float) -> OnePass:
    # Each of the two takes a while to import, and a process needs one of them.
    if on_host(x):
        from outlier_atlas.statistics import compiled

        return compiled.one_pass(x.numpy(), floor)
    from outlier_atlas.statistics import on_device

    return on_device.one_pass(x, floor)
