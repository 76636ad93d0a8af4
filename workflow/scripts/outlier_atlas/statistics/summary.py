"""The summary of a tile: all that the criteria and measures ask of it, and no threshold of theirs.

A tile is the tokens of one sequence within one chunk, of one site and layer. Its summary is made
once, where the values are: in extraction, on the device, of what is not stored; in detection of
what is. Everything else works from summaries, so that another threshold reads no values.

Written in torch for whatever device the values are on. Maxima, counts and medians are exact; sums
are float64, and the same values give the same bits wherever one thread adds them up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.statistics.blocks import (
    STRIDE,
    Block,
    Int32,
    Values,
    look,
    work_of,
)
from outlier_atlas.statistics.codes import CODES, Float32, Float64, Int64
from outlier_atlas.statistics.moments import Moments

TOP = 3
"""The largest values that are kept of a tile."""


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
    # MPS has no float64; and sums of another order in memory would have other last bits.
    x = (values_TC.cpu() if values_TC.device.type == "mps" else values_TC).float().contiguous()
    token = np.arange(place.tokens, dtype=np.int32)
    if kept is not None:
        token = token[kept]
        x = x[torch.from_numpy(token.astype(np.int64)).to(x.device)]
    values = Values.of(x)
    code = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    work = work_of(x)
    blocks = [
        look(block, code[part], work[:, : len(block.x)], part.start, floor)
        for part, block in values.blocks()
    ]
    codes, code_counts = _histogram(code, values.finite)
    channel_value, channel_row = _largest_of_channels(values, blocks)
    powers = Moments.none(x.shape[1])
    for block in blocks:
        powers.update(block.powers)
    number, mean, m2, m3, m4 = powers.powers
    token_value = _joined([block.token_value for block in blocks], np.float32)
    rows = _joined([block.high_row for block in blocks], np.int32)
    return Summary(
        sequence=place.sequence,
        start=place.start,
        tokens=place.tokens,
        values=x.numel(),
        nan=0 if values.finite is None else int(x.isnan().sum()),
        infinite=0 if values.finite is None else int(x.isinf().sum()),
        magnitudes=math.fsum(block.magnitudes for block in blocks),
        floor=floor,
        top=_top(x, token_value),
        codes=codes,
        code_counts=code_counts,
        channel_value=channel_value,
        channel_token=np.where(channel_row < 0, -1, np.append(token, -1)[channel_row]),
        channel_count=number.astype(np.int64),
        channel_mean=mean,
        channel_m2=m2,
        channel_m3=m3,
        channel_m4=m4,
        token=token,
        token_value=token_value,
        token_channel=_joined([block.token_channel for block in blocks], np.int32),
        token_square=_joined([block.token_square for block in blocks], np.float64),
        token_median=_joined([block.token_median for block in blocks], np.float32),
        token_kurtosis=_joined([block.token_kurtosis for block in blocks], np.float64),
        high_token=token[rows],
        high_channel=_joined([block.high_channel for block in blocks], np.int32),
        high_value=_joined([block.high_value for block in blocks], np.float32),
    )


def _joined(arrays: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *arrays])


def _histogram(code: torch.Tensor, finite: torch.Tensor | None) -> tuple[NDArray[np.uint16], Int64]:
    """The codes that occur, ascending, and how often; their order within a token does not count."""
    values = code.flatten() if finite is None else code[code >= 0]
    counts = torch.bincount(values.view(torch.int16), minlength=CODES).cpu().numpy()
    codes = np.flatnonzero(counts)
    return codes.astype(np.uint16), counts[codes]


def _largest_of_channels(values: Values, blocks: Sequence[Block]) -> tuple[Float32, Int32]:
    """(channel,): the values largest in |x|, and their rows, the first of equals."""
    rows, channels = values.x.shape
    if not rows:
        return np.full(channels, np.nan, np.float32), np.full(channels, -1, np.int32)
    # A maximum is several times as quick to find as its place: so its stride first, then in there.
    stride = torch.cat([block.of_strides for block in blocks]).argmax(0)
    within = stride * STRIDE + torch.arange(STRIDE, device=stride.device).unsqueeze(1)
    within.clamp_(max=rows - 1)
    place = Values.of(values.x.gather(0, within)).magnitudes().argmax(0, keepdim=True)
    return values.at(within.gather(0, place).squeeze(0), 0)


def _top(x: torch.Tensor, token_value: Float32) -> Float32:
    # The largest values lie in the rows with the largest maxima, one row a value at most.
    rows = np.argsort(-np.abs(token_value))[:TOP]  # NaN last
    values = x[torch.from_numpy(rows).to(x.device)].abs().flatten().cpu().numpy()
    return np.sort(values[np.isfinite(values)])[::-1][:TOP].copy()
