"""The pass over a tile: a block of tokens at a time, so that what is made of it stays in caches.

On the host numpy finds places and medians several times as fast as torch, with the same results;
elsewhere torch does it on the device, in one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float32, Float64
from outlier_atlas.statistics.moments import Powers

Int32 = NDArray[np.int32]

TOKENS = 512
"""Tokens of a block on the host; a multiple of `STRIDE`."""

FLOAT64_TENSORS = 3
"""Tensors of the block's size that `look` works in. They are used again for the next block: memory
that is new costs several times what is done in it."""

STRIDE = 32
"""Tokens among which the largest of a channel is looked for when their maximum is known."""


@dataclass(frozen=True)
class Block:
    """What is known of the tokens of a block.

    Attributes:
        of_strides: (stride, channel): the largest |x| of every `STRIDE` tokens; -1 where none is
            finite.
        powers: (channel,) each: see `moments.Powers`.
        magnitudes: sum of |x|.
        token_value, token_channel, token_square, token_median, token_kurtosis: see
            `Summary`.
        high_row, high_channel, high_value: the exceedances; rows are those of the tile.
    """

    of_strides: torch.Tensor
    powers: Powers
    magnitudes: float
    token_value: Float32
    token_channel: Int32
    token_square: Float64
    token_median: Float32
    token_kurtosis: Float64
    high_row: Int32
    high_channel: Int32
    high_value: Float32


@dataclass(frozen=True)
class Values:
    """The values of a tile, or of a block of it.

    Attributes:
        x: (token, channel), float32, contiguous in memory.
        finite: where they are; None where all are.
    """

    x: torch.Tensor
    finite: torch.Tensor | None

    @classmethod
    def of(cls, x: torch.Tensor) -> Values:
        """Values that may be NaN or infinite."""
        if bool(torch.isfinite(x.sum())):
            return cls(x, None)
        finite = x.isfinite()
        return cls(x, None if bool(finite.all()) else finite)  # perhaps only the sum overflowed

    def blocks(self) -> Iterator[tuple[slice, Values]]:
        """Which tokens, and their values."""
        size = TOKENS if on_host(self.x) else max(1, len(self.x))
        for start in range(0, len(self.x), size):
            part = slice(start, start + size)
            yield part, Values(self.x[part], None if self.finite is None else self.finite[part])

    def magnitudes(self) -> torch.Tensor:
        """|x|, -1 where it is not finite."""
        return self._masked(self.x.abs(), -1)

    def double(self, out: torch.Tensor) -> torch.Tensor:
        """In float64, 0 where they are not finite."""
        return self._masked(out.copy_(self.x), 0)

    def distances(
        self, doubles: torch.Tensor, mean: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Of `doubles` from the mean, 0 where the values are not finite."""
        return self._masked(torch.sub(doubles, mean, out=out), 0)

    def number(self, axis: int) -> torch.Tensor:
        """How many are finite along an axis, in float64."""
        if self.finite is None:
            size = self.x.shape[axis]
            return self.x.new_full((self.x.shape[1 - axis],), size, dtype=torch.float64)
        return self.finite.sum(axis, dtype=torch.float64)

    def at(self, index: torch.Tensor, axis: int) -> tuple[Float32, Int32]:
        """The values at an index along an axis, and the index; NaN and -1 of what is not finite."""
        values = self.x.gather(axis, index.unsqueeze(axis)).squeeze(axis).cpu().numpy()
        there = np.isfinite(values)
        return (
            np.where(there, values, np.float32(np.nan)),
            np.where(there, index.cpu().numpy(), -1).astype(np.int32),
        )

    def _masked(self, values: torch.Tensor, value: float) -> torch.Tensor:
        return values if self.finite is None else values.masked_fill_(~self.finite, value)


def on_host(tensor: torch.Tensor) -> bool:
    """Whether numpy can have a tensor's memory."""
    return tensor.device.type == "cpu"


def work_of(x: torch.Tensor) -> torch.Tensor:
    """The tensors that `look` works in, for the blocks of a tile, (tensor, token, channel)."""
    tokens = TOKENS if on_host(x) else len(x)
    return x.new_empty((FLOAT64_TENSORS, min(tokens, len(x)), x.shape[1]), dtype=torch.float64)


def look(block: Values, codes: torch.Tensor, work: torch.Tensor, start: int, floor: float) -> Block:
    """All of a block.

    Args:
        work: see `work_of`; as many tokens of it as the block has.
        codes: (token, channel): takes |x| in bfloat16, rounded to nearest even, -1 where x is not
            finite; each token's in an order of their own.
        start: the row of its first token in the tile.
        floor: see `Summary.floor`.
    """
    a = block.magnitudes()
    codes.copy_(a)
    # torch too gives the first of equals.
    index = torch.from_numpy(a.numpy().argmax(1)) if on_host(a) else a.argmax(1)
    token_value, token_channel = block.at(index, 1)
    rows, channels, values = _exceedances(block.x, a, token_value, floor)
    doubles, *others = block.double(work[0]), work[1], work[2]
    token_square, token_kurtosis = _token_moments(block, doubles, others[0])
    return Block(
        of_strides=torch.stack([s.amax(0) for s in torch.split(a, STRIDE)]),
        powers=_channel_powers(block, doubles, *others),
        magnitudes=float(doubles.abs_().sum(1).sum()),
        token_value=token_value,
        token_channel=token_channel,
        token_square=token_square,
        token_median=_lower_medians(a, codes, block.finite),
        token_kurtosis=token_kurtosis,
        high_row=start + rows,
        high_channel=channels,
        high_value=values,
    )


def _exceedances(
    x: torch.Tensor, a: torch.Tensor, token_value: Float32, floor: float
) -> tuple[Int32, Int32, Float32]:
    """Tokens, channels and values with |x| >= floor, by token and channel."""
    if not (np.abs(token_value) >= np.float32(floor)).any():
        return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32)
    # numpy compares in half the time.
    high = np.flatnonzero(a.numpy() >= floor if on_host(a) else (a >= floor).cpu())
    tokens, channels = np.divmod(high, a.shape[1])
    values = x.flatten()[torch.from_numpy(high).to(x.device)].cpu().numpy()
    return tokens.astype(np.int32), channels.astype(np.int32), values


def _lower_medians(a: torch.Tensor, codes: torch.Tensor, finite: torch.Tensor | None) -> Float32:
    """(token,): the median of |x| over channels, the lower of the two middle ones; NaN of none.

    Args:
        a: |x|; it, or `codes`, is in another order afterwards.
        codes: the same in bfloat16, which may not hold all exactly.
    """
    middle = (a.shape[1] - 1) // 2
    if finite is not None:
        counts = finite.sum(1)
        ordered = a.masked_fill(~finite, torch.inf).sort(1).values
        index = ((counts - 1) // 2).clamp(min=0).unsqueeze(1)
        medians = ordered.gather(1, index).squeeze(1).masked_fill(counts == 0, torch.nan)
    elif on_host(a):
        short = torch.equal(codes.float(), a)
        # Bits of numbers that are not negative are in the order of the numbers.
        bits = codes.view(torch.int16) if short else a.view(torch.int32)
        bits.numpy().partition(middle, axis=1)
        medians = (codes if short else a)[:, middle].float()
    else:
        medians = a.kthvalue(middle + 1, 1).values
    return np.array(medians.cpu().numpy())


def _token_moments(
    block: Values, doubles: torch.Tensor, work: torch.Tensor
) -> tuple[Float64, Float64]:
    """(token,) each: the sum of squares, and mu4 / sigma^4 over channels."""
    # Not from the moments: equal norms are to be equal.
    square = torch.square(doubles, out=work).sum(1)
    n = block.number(1)
    mean = doubles.sum(1) / n.clamp(min=1)
    squares = block.distances(doubles, mean.unsqueeze(1), work).square_()
    m2 = squares.sum(1)
    kurtosis = n * squares.square_().sum(1) / (m2 * m2)
    return square.cpu().numpy(), kurtosis.cpu().numpy()


def _channel_powers(
    block: Values, doubles: torch.Tensor, work: torch.Tensor, more_work: torch.Tensor
) -> Powers:
    """(channel,) each, about the block's own mean."""
    n = block.number(0)
    mean = doubles.sum(0) / n.clamp(min=1)
    d = block.distances(doubles, mean, work)
    squares = torch.square(d, out=more_work)
    m2, m3 = squares.sum(0), d.mul_(squares).sum(0)
    m4 = squares.square_().sum(0)
    n, mean, m2, m3, m4 = torch.stack([n, mean, m2, m3, m4]).cpu().numpy()
    return n, mean, m2, m3, m4
