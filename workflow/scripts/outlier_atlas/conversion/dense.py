"""Dense weights from codes: which loop converts them, in which pieces."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.conversion.work import Job

PIECE = 2**22
"""Approximate number of values that a thread converts at a time."""

TARGETS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Numbers of the targets in `loops`, by dtype."""

GGUF = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Types of GGUF blocks with a compiled loop, which has the name of the type."""

Bits = NDArray[np.uint16]


def bits_of(tensor: torch.Tensor) -> Bits:
    """Return the memory of a tensor as 16-bit numbers, two for each float32."""
    bits: Bits = tensor.view(torch.uint16).numpy()
    return bits


def scaled(
    codes: torch.Tensor,
    scales: torch.Tensor,
    block: tuple[int, int],
    target: torch.dtype,
    out: Bits,
) -> Iterator[Job]:
    """Yield jobs that write codes of 8 bits times the scales of their blocks, rounded once.

    Args:
        codes: (row, column), of any dtype of 8 bits.
        scales: (block of rows, block of columns); bytes are exponents in the format E8M0.
        block: rows and columns of a block; blocks at the edges may be cut.
        target: dtype of the result.
        out: (row, column): bits of the result.
    """
    from outlier_atlas.conversion import loops

    rows, columns = codes.shape
    is_e4m3 = codes.dtype == torch.float8_e4m3fn
    loop: Any = loops.scaled_e4m3 if is_e4m3 else loops.scaled_by_table
    more = () if is_e4m3 else (_table(codes.dtype),)
    stored, factors = _bytes(codes), _float32(scales)
    step = max(PIECE // max(columns, 1), 1)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        yield partial(
            loop, stored[part], factors, block, first, TARGETS[target], out[part], *more
        )  # fmt: skip


def transposed_mxfp4(
    blocks: torch.Tensor, exponents: torch.Tensor, target: torch.dtype, out: Bits
) -> Iterator[Job]:
    """Yield jobs that write a packed matrix, transposed and rounded once.

    Args:
        blocks: (out, block, 16), bytes of two codes each, the low code first.
        exponents: (out, block), in the format E8M0.
        target: dtype of the result.
        out: (in, out): bits of the result, where `in` is 32 times the number of blocks.
    """
    from outlier_atlas.conversion import loops

    stored, powers = _bytes(blocks), _bytes(exponents)
    rows = len(stored)
    tiles = PIECE // (max(stored[0].size, 1) * 2) // loops.TILE if rows else 0
    step = max(tiles, 1) * loops.TILE
    for first in range(0, rows, step):
        stop = min(first + step, rows)
        yield partial(
            loops.transposed_mxfp4, stored, powers, first, stop, TARGETS[target], out
        )  # fmt: skip


def gguf(
    kind: str,
    raw: NDArray[np.uint8],
    rows: NDArray[np.int64],
    target: torch.dtype,
    out: Bits,
) -> Iterator[Job]:
    """Yield jobs that write rows of GGUF blocks, rounded once.

    Args:
        kind: type of the blocks, one of `GGUF`.
        raw: (row, byte).
        rows: row of `raw` for each row of `out`.
        target: dtype of the result.
        out: (row, column): bits of the result.
    """
    from outlier_atlas.conversion import loops

    assert kind in GGUF
    loop: Any = getattr(loops, kind.lower())
    step = max(PIECE // max(out.shape[-1], 1), 1)
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        yield partial(loop, _frozen(raw), rows[part], TARGETS[target], out[part])


def copied(values: torch.Tensor, out: Bits) -> Iterator[Job]:
    """Yield a job that copies values, which have the dtype of the result."""
    yield partial(np.copyto, out, bits_of(values))


def _bytes(codes: torch.Tensor) -> NDArray[np.uint8]:
    return _frozen(codes.contiguous().view(torch.uint8).numpy())


def _frozen(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a view that cannot be written, so that there is one compiled version of each loop."""
    view = array[:]
    view.flags.writeable = False
    return view


def _float32(scales: torch.Tensor) -> NDArray[np.float32]:
    if scales.dtype == torch.uint8:
        scales = scales.view(torch.float8_e8m0fnu)
    values: NDArray[np.float32] = scales.float().contiguous().numpy()
    return values


@cache
def _table(dtype: torch.dtype) -> NDArray[np.float32]:
    """Return the value of each code of 8 bits."""
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    values: NDArray[np.float32] = codes.view(dtype).float().numpy()
    return values
