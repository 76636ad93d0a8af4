"""Matrices of a checkpoint, read as they are stored, some rows at a time.

Files are memory-mapped and read when rows are taken, so only these rows are in memory, in float32.
Quantized weights are dequantized row by row into float32, in the same way as in a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from outlier_atlas.checkpoint.folder import is_gguf
from outlier_atlas.checkpoint.quantization import ADVICE, quantization_settings, scale_block
from outlier_atlas.loading.dequantize import dequantize_fp8, dequantize_mxfp4, scales_fit
from outlier_atlas.roles.decoder_weights import StoredWeight

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from outlier_atlas.checkpoint.gguf.tensors import LazyWeight


class MatrixRows(Protocol):
    """Function that returns a copy of rows `start` to `stop - 1`, (row, column) in float32."""

    def __call__(self, start: int, stop: int) -> Tensor: ...


@dataclass(frozen=True)
class Matrix:
    """Weight as it is multiplied with: rows are output channels, columns input channels.

    Attributes:
        weight: the weight.
        expert: index of the expert; None for a weight without experts.
        dtype: dtype in which it is stored; for quantized weights the dtype of the codes.
        rows: number of rows.
        columns: number of columns.
        take: function that returns some of the rows.
    """

    weight: StoredWeight
    expert: int | None
    dtype: str
    rows: int
    columns: int
    take: MatrixRows


class Checkpoint:
    """Files of a checkpoint, open for reading; a context manager.

    Args:
        folder: folder of the checkpoint.
        files: names of its weight files.
        config: configuration, which states how weights are quantized.
    """

    def __init__(self, folder: Path, files: Sequence[str], config: PretrainedConfig) -> None:
        self._folder, self._files = folder, files
        settings = quantization_settings(config)
        self._block = None if settings is None else scale_block(settings)
        self._open: dict[str, Any] = {}
        self._gguf: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> Checkpoint:
        from safetensors import SafetensorError, safe_open

        if is_gguf(self._files):
            from outlier_atlas.checkpoint.gguf.tensors import GgufWeights

            self._gguf = GgufWeights.open(self._folder)
            return self
        for name in self._files:
            try:
                file = self._stack.enter_context(safe_open(self._folder / name, framework="pt"))
            except SafetensorError as error:
                raise ValueError(
                    f"{self._folder / name}: damaged safetensors file ({error}); fetch it again"
                ) from error
            self._open[name] = file
        return self

    def __exit__(self, *error: object) -> None:
        self._open.clear()
        self._stack.close()

    def matrices(self, weight: StoredWeight) -> Iterator[Matrix]:
        """Yield the matrix of a weight; for fused experts one matrix per expert, in order.

        Each tensor is opened once, and read when rows are taken.

        Raises:
            ValueError: the weight is quantized in a way that is not supported.
        """
        if self._gguf is not None:
            yield from _from_blocks(weight, self._gguf[weight.name])
            return
        parts = {name: self._open[file].get_tensor(name) for name, file in weight.tensors.items()}
        stored = parts.get(weight.name)
        scales, blocks = (parts.get(f"{weight.name}{end}") for end in ("_scale_inv", "_blocks"))
        if blocks is not None:
            yield from self._packed(weight, blocks, parts.get(f"{weight.name}_scales"))
        elif stored is not None and scales is not None:
            yield self._scaled(weight, stored, scales)
        elif stored is not None and stored.is_floating_point() and stored.element_size() > 1:
            yield from _plain(weight, stored)
        else:
            raise self._fault(weight)

    def _scaled(self, weight: StoredWeight, codes: Tensor, scales: Tensor) -> Matrix:
        if not scales_fit(codes, scales, self._block):
            raise self._fault(weight)
        take = partial(_take_scaled, codes, scales, self._block)
        rows, columns = codes.shape
        return Matrix(weight, weight.expert, _name(codes), rows, columns, take)

    def _packed(
        self, weight: StoredWeight, blocks: Tensor, scales: Tensor | None
    ) -> Iterator[Matrix]:
        if scales is None or blocks.dim() != 4 or scales.shape != blocks.shape[:3]:
            raise self._fault(weight)
        experts, rows, block_count, size = blocks.shape
        for expert in range(experts):
            take = partial(_take_packed, blocks[expert], scales[expert])
            yield Matrix(weight, expert, "mxfp4", rows, 2 * block_count * size, take)

    def _fault(self, weight: StoredWeight) -> ValueError:
        return ValueError(
            f"{self._folder}: {weight.name} is quantized in a way that cannot be dequantized; "
            f"{ADVICE}"
        )


def _plain(weight: StoredWeight, stored: Tensor) -> Iterator[Matrix]:
    """Yield the matrices of a stored tensor that is not quantized."""
    matrix_or_stack = stored.transpose(-2, -1) if weight.transposed else stored
    matrices = list(matrix_or_stack) if matrix_or_stack.dim() == 3 else [matrix_or_stack]
    for index, matrix in enumerate(matrices):
        expert = index if matrix_or_stack.dim() == 3 else weight.expert
        rows, columns = matrix.shape
        yield Matrix(weight, expert, _name(stored), rows, columns, partial(_take, matrix))


def _from_blocks(weight: StoredWeight, blocks: LazyWeight) -> Iterator[Matrix]:
    """Yield the matrices of a weight in a GGUF file, read when rows are taken."""
    kind = blocks.weight.type
    if weight.transposed:
        for matrix in _plain(weight, blocks.to()):
            yield replace(matrix, dtype=kind)
        return
    rows, columns = blocks.shape[-2:]
    count = blocks.shape[0] if len(blocks.shape) == 3 else 1
    for index in range(count):
        expert = index if len(blocks.shape) == 3 else weight.expert
        take = partial(_take_from_blocks, blocks, index * rows)
        yield Matrix(weight, expert, kind, rows, columns, take)


def _take_from_blocks(blocks: LazyWeight, first: int, start: int, stop: int) -> Tensor:
    return blocks.rows(first + start, first + stop)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _take(matrix: Tensor, start: int, stop: int) -> Tensor:
    return matrix[start:stop].to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _take_scaled(
    codes: Tensor, scales: Tensor, block: Sequence[int] | None, start: int, stop: int
) -> Tensor:
    if block is None:
        return dequantize_fp8(codes[start:stop], scales, None, torch.float32)
    height = block[0]
    first = start // height
    dense = dequantize_fp8(
        codes[first * height : stop], scales[first : -(-stop // height)], block, torch.float32
    )
    return dense[start - first * height :]


def _take_packed(blocks: Tensor, scales: Tensor, start: int, stop: int) -> Tensor:
    part = slice(start, stop)
    return dequantize_mxfp4(blocks[None, part], scales[None, part], torch.float32)[0].T.contiguous()
