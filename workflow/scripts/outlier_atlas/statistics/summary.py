"""The summary of a tile: everything that criteria and measures need of it, without thresholds.

A tile is the tokens of one sequence within one chunk, at one site and layer. Its summary is
computed once. Extraction summarizes values that are not stored, on their device, and detection
summarizes stored values. Everything else uses only summaries, so that a changed threshold reads no
values.

Maxima, counts and medians are exact on every device. Sums are float64, and equal values give equal
bits on the same processor or device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.devices.registry import of
from outlier_atlas.statistics.codes import Float32, Float64, Int32, Int64
from outlier_atlas.statistics.one_pass import OnePass

if TYPE_CHECKING:
    import torch

Values = Union["torch.Tensor", NDArray[np.floating]]
"""Values of tokens, (token, channel): a tensor, or an array. Detection needs no torch."""


@dataclass(frozen=True)
class TileRange:
    """The range of tokens of a tile.

    Attributes:
        sequence: index of the sequence.
        start: index of the tile's first token along the token axis.
        tokens: number of tokens, including those excluded from the statistics.
    """

    sequence: int
    start: int
    tokens: int


@dataclass(frozen=True)
class Summary:
    """The summary of a tile.

    Tokens are numbered from the tile's first; -1 means that there is none. NaN and infinite values
    are counted, and excluded from everything else.

    Attributes:
        sequence, start, tokens: the `TileRange` of the tile.
        values, nan, infinite: number of values of the included tokens, and of those that are NaN or
            infinite.
        magnitudes: sum of |x|.
        floor: least |x| of an exceedance.
        top: the largest |x|, descending, at most `TOP`.
        codes, code_counts: codes of |x|, ascending, and their counts.
        codes_are_exact: whether every |x| equals the number that its code stands for, as in
            bfloat16.
        sequence_median: median of |x| over the whole sequence, the lower of the two middle values,
            if the codes do not give it exactly. NaN if it is not needed (see `medians`), or if the
            rest of the sequence was not available.
        channel_value: (channel,): the value largest in |x|, with its sign; NaN if there is none.
        channel_token: (channel,): token of that value, the first of equals.
        channel_count, channel_mean, channel_m2, channel_m3, channel_m4: (channel,): number, mean,
            and sums of the second to fourth powers of the deviations from the mean.
        token: (token,): the included tokens.
        token_value, token_channel: (token,): the value largest in |x|, with its sign, and its
            channel, the lowest of equals.
        token_square: (token,): sum of squares.
        token_median: (token,): median of |x| over channels, the lower of the two middle values.
        token_kurtosis: (token,): mu4 / sigma^4 over channels; NaN if all values are equal.
        high_token, high_channel, high_value: (exceedance,): token, channel and value of each
            |x| >= floor, ordered by token and channel.
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
    values_TC: Values,
    tile: TileRange,
    floor: float,
    included: NDArray[np.bool_] | None = None,
) -> Summary:
    """Return the summary of a tile.

    Args:
        values_TC: (token, channel), on any device, in the dtype of the forward pass.
        tile: the tokens of the tile.
        floor: least |x| of an exceedance.
        included: (token,): whether the token is included; None includes all tokens.
    """
    assert len(values_TC) == tile.tokens
    x = widened(values_TC)
    token = np.arange(tile.tokens, dtype=np.int32)
    if included is not None:
        token = token[included]
        x = rows_of(x, token)
    result = _one_pass(x, floor)
    channel_token, high_token = result.channel_row, result.high_row
    if included is not None:
        channel_token, high_token = np.append(token, np.int32(-1))[channel_token], token[high_token]
    return Summary(
        sequence=tile.sequence,
        start=tile.start,
        tokens=tile.tokens,
        values=len(token) * x.shape[1],
        nan=result.nan,
        infinite=result.infinite,
        magnitudes=result.magnitudes,
        floor=floor,
        top=result.top,
        codes=result.codes,
        code_counts=result.code_counts,
        codes_are_exact=result.codes_are_exact,
        sequence_median=np.nan,
        channel_value=result.channel_value,
        channel_token=channel_token,
        channel_count=result.channel_count,
        channel_mean=result.channel_mean,
        channel_m2=result.channel_m2,
        channel_m3=result.channel_m3,
        channel_m4=result.channel_m4,
        token=token,
        token_value=result.token_value,
        token_channel=result.token_channel,
        token_square=result.token_square,
        token_median=result.token_median,
        token_kurtosis=result.token_kurtosis,
        high_token=high_token,
        high_channel=result.high_channel,
        high_value=result.high_value,
    )


def widened(values_TC: Values) -> torch.Tensor | Float32:
    """Return the values in float32, contiguous.

    On a device that supports float64 they stay a tensor; others become an array of the host.
    """
    if isinstance(values_TC, np.ndarray) or on_host(values_TC) or not of(values_TC).has_float64:
        return host_values(values_TC)
    return values_TC.float().contiguous()


def on_host(tensor: torch.Tensor) -> bool:
    """Return whether numpy can use a tensor's memory."""
    return of(tensor).is_host


def host_values(values_TC: Values) -> Float32:
    """Return the values in float32 as a contiguous array of the host."""
    # Contiguous, because another order in memory would change the last bits of sums. Writable,
    # because numba would compile everything again for read-only arrays.
    if isinstance(values_TC, np.ndarray):
        return np.require(values_TC, np.float32, ["C", "W"])
    x: Float32 = values_TC.cpu().float().contiguous().numpy()
    return x


def rows_of(x: torch.Tensor | Float32, rows: Int32) -> torch.Tensor | Float32:
    """Return some rows of what `widened` returns, contiguous."""
    if isinstance(x, np.ndarray):
        return x[rows]
    import torch

    return x[torch.from_numpy(rows.astype(np.int64)).to(x.device)]


def _one_pass(x: torch.Tensor | Float32, floor: float) -> OnePass:
    # Both modules are slow to import, and a process needs only one of them.
    if isinstance(x, np.ndarray):
        from outlier_atlas.statistics import compiled

        return compiled.one_pass(x, floor)
    from outlier_atlas.statistics import on_device

    return on_device.one_pass(x, floor)
