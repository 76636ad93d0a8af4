"""Mapping from the tensors of a GGUF file to the weights of the model, and their reading.

transformers knows the tensor names, and how to undo the changes of llama.cpp's converter. But it
reads whole files. Here one weight is read at a time, and only the weights of a layer group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.checkpoint.folder import GGUF_INDEX
from outlier_atlas.checkpoint.gguf.configuration import ROPE_FACTORS
from outlier_atlas.checkpoint.gguf.file import Blocks, GgufFile, Reader, stored_types
from outlier_atlas.files import read_record, write_record

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from outlier_atlas.conversion.work import Job

PIECE = 2**18
"""Approximate number of values dequantized at a time; numpy holds several copies of them."""

STACKED = (".ffn_gate_exps.", ".ffn_up_exps.")
"""Tensors of all experts that one weight contains one after the other, expert by expert."""


@dataclass(frozen=True)
class Weight:
    """Parameter or buffer of the model, with the tensors that it is made of, in order."""

    name: str
    shape: tuple[int, ...]
    blocks: tuple[Blocks, ...]

    @property
    def type(self) -> str:
        """Storage types of the tensors, the most frequent first."""
        return stored_types([blocks.type for blocks in self.blocks])

    @property
    def size(self) -> int:
        """Number of bytes in the file."""
        return sum(blocks.size for blocks in self.blocks)

    @property
    def rows(self) -> int:
        """Number of rows: the product of all axes but the last."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))


# --- Names ---------------------------------------------------------------------------------------


def match_weights(file: GgufFile, config: PretrainedConfig) -> list[Weight]:
    """Return the weights of a model, each with the tensors that it is made of.

    Raises:
        ValueError: a tensor belongs to no weight, a weight has no tensor, or a shape does not fit.
    """
    from transformers import AutoModelForCausalLM

    _refuse_unknown_values(file)
    if config.num_hidden_layers > len(file.blocks):
        raise ValueError(
            f"{file.parts[0]}: {file.architecture}.block_count is {config.num_hidden_layers}, but "
            f"the file has only {len(file.blocks)} tensors; fetch it again"
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _check_rotation(file, model)
    targets = _legacy_names(file, model) if _is_legacy(file) else _converted_names(file, model)
    unused = sorted({*file.blocks} - {*targets} - {ROPE_FACTORS})
    if unused:
        raise ValueError(
            f"{file.parts[0]}: tensor {unused[0]} belongs to no weight of {type(model).__name__} "
            f"({len(unused)} such); use the safetensors files of this model instead"
        )
    blocks_by_weight: dict[str, list[Blocks]] = {}
    for name, target in sorted(targets.items(), key=lambda item: _order(item[0])):
        if name in file.blocks:
            blocks_by_weight.setdefault(target, []).append(file.blocks[name])
    config.architectures = [type(model).__name__]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {*model.all_tied_weights_keys} if config.tie_word_embeddings else set()
    for target in shapes:
        sources = {name for name, weight_name in targets.items() if weight_name == target}
        missing = sorted(sources - {*file.blocks}) or [target]
        if target not in tied and (
            target not in blocks_by_weight or len(blocks_by_weight[target]) < len(sources)
        ):
            raise ValueError(
                f"{file.parts[0]}: tensor {missing[0]} is missing; the weight {target} of "
                f"{type(model).__name__} needs it; fetch the file again"
            )
    weights = [
        Weight(name, shapes[name], tuple(blocks)) for name, blocks in blocks_by_weight.items()
    ]
    reader = GgufWeights(file.parts[0].parent, file.architecture, _parameters(file), weights)
    for weight in weights:
        reader.check_shape(weight)
    return weights


def _check_rotation(file: GgufFile, model: PreTrainedModel) -> None:
    """Refuse a file whose heads rotate another number of channels than the heads of the model.

    Some classes ignore the number of channels that their configuration states.

    Raises:
        ValueError: the numbers of channels differ.
    """
    key = f"{file.architecture}.rope.dimension_count"
    stated = file.metadata.get(key)
    for name, buffer in model.named_buffers():
        is_frequencies = name.endswith("inv_freq") and "original" not in name
        if is_frequencies and stated not in (None, 2 * buffer.numel()):
            raise ValueError(
                f"{file.parts[0]}: {key} = {stated}, but {type(model).__name__} rotates "
                f"{2 * buffer.numel()} channels of a head; use the safetensors files of this "
                f"model instead"
            )


def _refuse_unknown_values(file: GgufFile) -> None:
    """Refuse architectures for which transformers has no `TENSOR_PROCESSORS` entry.

    Raises:
        ValueError: the architecture is one of them.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS

    if not _is_legacy(file) and file.architecture not in TENSOR_PROCESSORS:
        raise ValueError(
            f"{file.parts[0]}: GGUF files of architecture {file.architecture!r} are not supported; "
            f"use the safetensors files of this model instead"
        )


def _order(name: str) -> tuple[int, str]:
    """Return a sort key that puts the gate of fused experts before their up projection."""
    return next((i for i, kind in enumerate(STACKED) if kind in name), 0), name


def _is_legacy(file: GgufFile) -> bool:
    """Return whether transformers has no conversion mapping for the architecture."""
    from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS

    return file.architecture not in GGUF_ARCHS


def _legacy_names(file: GgufFile, model: PreTrainedModel) -> dict[str, str]:
    """Return the weights by tensor name, including tensors that a file need not have."""
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    try:
        all_names: dict[str, str] = get_gguf_hf_weights_map(
            model, _processor(file.architecture, {})
        )
    except NotImplementedError as error:
        raise ValueError(
            f"{file.parts[0]}: transformers does not know the tensors of architecture "
            f"{file.architecture!r}; use the safetensors files of this model instead"
        ) from error
    # Parameters of fused experts have no `.weight` at the end of their names, tensors have it.
    names = {
        name
        if name in file.blocks or name.endswith((".weight", ".bias"))
        else f"{name}.weight": target
        for name, target in all_names.items()
    }
    parameters = {*model.state_dict()}
    # Both names of tied weights are listed; the weight that is stored provides both.
    return {name: target for name, target in names.items() if target in parameters and (
        name in file.blocks or target not in model.all_tied_weights_keys)}  # fmt: skip


def _converted_names(file: GgufFile, model: PreTrainedModel) -> dict[str, str]:
    """Return the weights by tensor name, from the conversion mapping of transformers."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    from transformers.integrations.gguf.utils import get_gguf_conversion_mapping

    mapping = get_gguf_conversion_mapping(file.architecture, model.config)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    parameters = {*model.state_dict()}
    names = {name: str(rename_source_key(name, renamings, converters)[0]) for name in file.blocks}
    return {name: target for name, target in names.items() if target in parameters}


def _processor(architecture: str, parameters: dict[str, Any]) -> Any:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    return TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=parameters)


def _parameters(file: GgufFile) -> dict[str, Any]:
    """Return the configuration entries that the tensor processors of transformers need."""
    metadata = file.metadata
    heads = metadata.get(f"{file.architecture}.attention.head_count")
    return {
        "num_attention_heads": heads,
        "n_head": heads,
        "num_key_value_heads": metadata.get(f"{file.architecture}.attention.head_count_kv", heads),
        "hidden_size": metadata.get(f"{file.architecture}.embedding_length"),
    }


# --- Weights -------------------------------------------------------------------------------------


class GgufWeights(Mapping[str, "LazyWeight"]):
    """Mapping from names to the weights of a GGUF file, each read on access.

    Args:
        folder: folder of the GGUF files.
        architecture: name of the architecture in llama.cpp.
        parameters: see `_parameters`.
        weights: the weights of the model.
    """

    def __init__(
        self,
        folder: Path,
        architecture: str,
        parameters: dict[str, Any],
        weights: Sequence[Weight],
    ) -> None:
        self._reader = Reader(folder)
        self._architecture, self._parameters = architecture, parameters
        self._weights = {weight.name: weight for weight in weights}

    @classmethod
    def open(cls, folder: Path) -> GgufWeights:
        """Return the weights that the index in a model's folder lists."""
        index = read_record(folder / GGUF_INDEX)
        weights = [
            Weight(name, tuple(w["shape"]), tuple(map(Blocks.from_record, w["blocks"])))
            for name, w in index["weights"].items()
        ]
        return cls(folder, index["architecture"], index["parameters"], weights)

    def __getitem__(self, name: str) -> LazyWeight:
        return LazyWeight(self, self._weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def check_shape(self, weight: Weight) -> None:
        """Refuse a weight whose tensors do not fit.

        Raises:
            ValueError: the shape or the number of values differs.
        """
        first = weight.blocks[0]
        stored_values = sum(int(np.prod(blocks.shape, dtype=np.int64)) for blocks in weight.blocks)
        values = int(np.prod(weight.shape, dtype=np.int64))
        plain = len(weight.blocks) == 1 and self._is_plain(weight)
        if stored_values != values or (plain and first.shape != weight.shape):
            shapes = " and ".join(f"{each.name} {list(each.shape)}" for each in weight.blocks)
            raise ValueError(
                f"{first.file}: tensor {shapes} does not fit the weight {weight.name} "
                f"{list(weight.shape)} of the model in its metadata; fetch the file again"
            )

    def rows(self, weight: Weight, start: int, stop: int) -> torch.Tensor:
        """Return rows of a weight as (row, column) in float32; all axes but the last are rows."""
        if len(weight.blocks) > 1:
            return self._stacked(weight, start, stop)
        if size := self.head_rows(weight):
            return self._rows_of_heads(weight, size, start, stop)
        if self._is_plain(weight):
            return _tensor(self._reader.rows(weight.blocks[0], start, stop))
        return self._whole(weight).reshape(weight.rows, -1)[start:stop]

    def converted(self, weight: Weight, dtype: torch.dtype) -> torch.Tensor | None:
        """Return all rows of a weight from compiled loops; None if there is no loop for them."""
        from outlier_atlas.conversion import dense
        from outlier_atlas.conversion.memory import empty
        from outlier_atlas.conversion.work import run

        known = all(blocks.type in dense.GGUF for blocks in weight.blocks)
        plain = len(weight.blocks) > 1 or self.head_rows(weight) or self._is_plain(weight)
        if not (known and plain):
            return None
        stacks = weight.shape[0] if len(weight.blocks) > 1 else 1
        values = empty((weight.rows, weight.shape[-1]), dtype)
        out, first = dense.bits_of(values).reshape(stacks, weight.rows // stacks, -1), 0
        jobs: list[Job] = []
        for blocks in weight.blocks:
            height = blocks.rows // stacks
            raw = self._reader.raw(blocks).reshape(stacks, height, -1)
            order = self._order(weight, height)
            for stack in range(stacks):
                part = out[stack, first : first + height]
                jobs += dense.gguf(blocks.type, raw[stack], order, dtype, part)
            first += height
        run(jobs)
        return values

    def _order(self, weight: Weight, rows: int) -> NDArray[np.int64]:
        """Return the row of the tensor for each row of the weight."""
        order = np.arange(rows)
        size = self.head_rows(weight)
        if size is None:
            return order
        (blocks,) = weight.blocks
        numbers = np.arange(size, dtype=np.float32)[:, None]
        one_head = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 1)
        moved = _processor(self._architecture, one_head).process(numbers, blocks.name).weights
        within = np.asarray(moved, np.int64).reshape(-1)
        return order // size * size + within[order % size]

    def head_rows(self, weight: Weight) -> int | None:
        """Return the rows of a head if llama.cpp's converter reorders rows within heads."""
        blocks = weight.blocks[0]
        kind = re.search(r"\.attn_(q|k)\.weight$", blocks.name)
        if self._architecture != "llama" or kind is None:
            return None
        key = "num_attention_heads" if kind[1] == "q" else "num_key_value_heads"
        return blocks.rows // int(self._parameters[key])

    def _rows_of_heads(self, weight: Weight, size: int, start: int, stop: int) -> torch.Tensor:
        """Return rows of a weight, reordering only the heads that contain them.

        A whole matrix may be large.
        """
        first, last = start // size, -(-stop // size)
        (blocks,) = weight.blocks
        values = self._reader.rows(blocks, first * size, last * size)
        heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), last - first)
        ordered = _processor(self._architecture, heads).process(values, blocks.name).weights
        return _tensor(ordered)[start - first * size : stop - first * size]

    def _is_plain(self, weight: Weight) -> bool:
        """Return whether the values have the order of the model and are only dequantized."""
        blocks = weight.blocks[0]
        if blocks.name.endswith(("_exps.weight",)):
            return True
        probe = np.broadcast_to(np.float32(1), blocks.shape)
        return self._processed(blocks, probe, weight) is probe

    def _whole(self, weight: Weight) -> torch.Tensor:
        (blocks,) = weight.blocks
        stored = self._reader.rows(blocks, 0, blocks.rows).reshape(blocks.shape)
        values = _tensor(self._processed(blocks, stored, weight))
        if tuple(values.shape) != weight.shape:
            raise ValueError(
                f"{blocks.file}: tensor {blocks.name} becomes {list(values.shape)}, but "
                f"{weight.name} has {list(weight.shape)}; use the safetensors files of this model "
                f"instead"
            )
        return values

    def _processed(self, blocks: Blocks, values: Any, weight: Weight) -> Any:
        """Return the values of a tensor after undoing the changes of llama.cpp's converter."""
        parsed: dict[str, Any] = {"tensors": {}}
        processed = self._processor.process(
            weights=values,
            name=blocks.name,
            tensor_key_mapping={blocks.name.removesuffix(".weight"): weight.name},
            parsed_parameters=parsed,
        )
        return (
            processed.weights
            if processed.name is not None
            else next(iter(parsed["tensors"].values()))
        )

    @cached_property
    def _processor(self) -> Any:
        return _processor(self._architecture, self._parameters)

    def _stacked(self, weight: Weight, start: int, stop: int) -> torch.Tensor:
        """Return rows of fused gates and ups: for each expert the gate's rows, then the up's."""
        heights = [blocks.rows // weight.shape[0] for blocks in weight.blocks]
        height = sum(heights)
        rows = torch.empty(stop - start, weight.shape[-1])
        row = start
        while row < stop:
            expert, within = divmod(row, height)
            index = 0
            while within >= heights[index]:
                within -= heights[index]
                index += 1
            count = min(stop - row, heights[index] - within)
            first = expert * heights[index] + within
            part = self._reader.rows(weight.blocks[index], first, first + count)
            rows[row - start : row - start + count] = _tensor(part)
            row += count
        return rows


class LazyWeight:
    """Weight that is read when transformers loads it: `weight[...].to(dtype=...)`."""

    def __init__(self, weights: GgufWeights, weight: Weight) -> None:
        self._weights = weights
        self.weight = weight

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight in the model."""
        return torch.Size(self.weight.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file."""
        return self.weight.size

    def __getitem__(self, index: Any) -> LazyWeight:
        assert index is Ellipsis, "transformers reads a weight as a whole"
        return self

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows of the weight; see `GgufWeights.rows`."""
        return self._weights.rows(self.weight, start, stop)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the weight in a dtype, rounded once."""
        values = self._weights.converted(self.weight, dtype or torch.float32)
        values = self._in_pieces(dtype) if values is None else values
        return values.reshape(self.weight.shape).to(device=device)

    def _in_pieces(self, dtype: torch.dtype | None) -> torch.Tensor:
        """Return rows of the weight, dequantizing a piece at a time with the gguf package."""
        rows, columns = self.weight.rows, self.weight.shape[-1]
        values = torch.empty(rows, columns, dtype=dtype or torch.float32)
        step = max(1, PIECE // columns) if self._pieces() else rows
        if size := self._weights.head_rows(self.weight):
            step = max(1, PIECE // columns // size) * size
        for start in range(0, rows, step):
            values[start : start + step] = self.rows(start, min(start + step, rows))
        return values

    def _pieces(self) -> bool:
        return len(self.weight.blocks) > 1 or self._weights._is_plain(self.weight)


def _tensor(values: Any) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values
    return torch.from_numpy(np.ascontiguousarray(values, np.float32).copy())


def write_index(folder: Path, file: GgufFile, weights: Sequence[Weight]) -> None:
    """Write the index of a model's folder, which maps each weight to its tensors."""
    write_record(
        folder / GGUF_INDEX,
        {
            "architecture": file.architecture,
            "parameters": _parameters(file),
            "types": _types(file),
            "weights": {
                weight.name: {
                    "shape": list(weight.shape),
                    "blocks": [blocks.record() for blocks in weight.blocks],
                }
                for weight in weights
            },
        },
    )


def _types(file: GgufFile) -> dict[str, int]:
    counts: dict[str, int] = {}
    for blocks in file.blocks.values():
        counts[blocks.type] = counts.get(blocks.type, 0) + 1
    return counts
