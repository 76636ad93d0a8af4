"""Which tensors of a GGUF file make which weight of the model, and the weights read from them.

transformers knows the names of the tensors, and how to undo what llama.cpp's converter does to
their values. It reads whole files by that knowledge. Here one weight is read at a time, and only
the weights of a layer group.
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

from outlier_atlas.checkpoint.folder import GGUF_INDEX
from outlier_atlas.checkpoint.gguf.configuration import ROPE_FACTORS
from outlier_atlas.checkpoint.gguf.file import Blocks, GgufFile, Reader, stored_types
from outlier_atlas.files import read_record, write_record

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PIECE = 2**18
"""Values, about, that are dequantized at a time; numpy holds several copies of them meanwhile."""

STACKED = (".ffn_gate_exps.", ".ffn_up_exps.")
"""Tensors of all experts that lie one behind the other in one weight, expert by expert."""


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of the model, and the tensors that it is made of, in their order."""

    name: str
    shape: tuple[int, ...]
    blocks: tuple[Blocks, ...]

    @property
    def type(self) -> str:
        """How it is stored; of several tensors in several ways, the most frequent first."""
        return stored_types([blocks.type for blocks in self.blocks])

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return sum(blocks.size for blocks in self.blocks)

    @property
    def rows(self) -> int:
        """Number of rows: of all axes but the last."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))


# --- Names ---------------------------------------------------------------------------------------


def weights_of(file: GgufFile, config: PretrainedConfig) -> list[Weight]:
    """The weights of a model, each with the tensors that it is made of.

    Raises:
        ValueError: a tensor makes no weight, a weight has no tensor, or a shape does not fit.
    """
    from transformers import AutoModelForCausalLM

    _refuse_unknown_values(file)
    if config.num_hidden_layers > len(file.blocks):
        raise ValueError(
            f"{file.parts[0]}: {file.architecture}.block_count is {config.num_hidden_layers}, and "
            f"it has {len(file.blocks)} tensors"
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _check_rotation(file, model)
    of = _legacy_names(file, model) if _is_legacy(file) else _converted_names(file, model)
    unused = sorted({*file.blocks} - {*of} - {ROPE_FACTORS})
    if unused:
        raise ValueError(
            f"{file.parts[0]}: tensor {unused[0]} belongs to no weight of {type(model).__name__} "
            f"({len(unused)} such); take the safetensors files of this model instead"
        )
    made: dict[str, list[Blocks]] = {}
    for name, target in sorted(of.items(), key=lambda item: _order(item[0])):
        if name in file.blocks:
            made.setdefault(target, []).append(file.blocks[name])
    config.architectures = [type(model).__name__]
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {*model.all_tied_weights_keys} if config.tie_word_embeddings else set()
    for target in wanted:
        sources = {name for name, given in of.items() if given == target}
        lacking = sorted(sources - {*file.blocks}) or [target]
        if target not in tied and (target not in made or len(made[target]) < len(sources)):
            raise ValueError(
                f"{file.parts[0]}: tensor {lacking[0]} is missing, of which the weight {target} of "
                f"{type(model).__name__} is made; fetch the file again"
            )
    weights = [Weight(name, wanted[name], tuple(blocks)) for name, blocks in made.items()]
    reader = GgufWeights(file.parts[0].parent, file.architecture, _parameters(file), weights)
    for weight in weights:
        reader.check_shape(weight)
    return weights


def _check_rotation(file: GgufFile, model: PreTrainedModel) -> None:
    """Refuse a file whose heads are rotated in another part than those of the model.

    Not every class heeds the part that its configuration names.

    Raises:
        ValueError: the number of channels is another one.
    """
    key = f"{file.architecture}.rope.dimension_count"
    wanted = file.metadata.get(key)
    for name, buffer in model.named_buffers():
        counts = name.endswith("inv_freq") and "original" not in name
        if counts and wanted not in (None, 2 * buffer.numel()):
            raise ValueError(
                f"{file.parts[0]}: {key} = {wanted}, and {type(model).__name__} rotates "
                f"{2 * buffer.numel()} channels of a head; take the safetensors files of this "
                f"model instead"
            )


def _refuse_unknown_values(file: GgufFile) -> None:
    """Refuse architectures whose values transformers converts in a way that is not followed here.

    Raises:
        ValueError: it is one of them.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS

    if not _is_legacy(file) and file.architecture not in TENSOR_PROCESSORS:
        raise ValueError(
            f"{file.parts[0]}: GGUF files of architecture {file.architecture!r} are not read; take "
            f"the safetensors files of this model instead"
        )


def _order(name: str) -> tuple[int, str]:
    return next((i for i, kind in enumerate(STACKED) if kind in name), 0), name


def _is_legacy(file: GgufFile) -> bool:
    from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS

    return file.architecture not in GGUF_ARCHS


def _legacy_names(file: GgufFile, model: PreTrainedModel) -> dict[str, str]:
    """Weights by the names of tensors, those among them that a model may have and need not."""
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    try:
        given: dict[str, str] = get_gguf_hf_weights_map(model, _processor(file.architecture, {}))
    except NotImplementedError as error:
        raise ValueError(
            f"{file.parts[0]}: transformers does not know the tensors of architecture "
            f"{file.architecture!r} in it; take the safetensors files of this model instead"
        ) from error
    # Parameters of fused experts have no ending, the tensors that they are made of have one.
    names = {
        name
        if name in file.blocks or name.endswith((".weight", ".bias"))
        else f"{name}.weight": target
        for name, target in given.items()
    }
    held = {*model.state_dict()}
    # Of tied weights both names are given; the one that is stored makes both.
    return {name: target for name, target in names.items() if target in held and (
        name in file.blocks or target not in model.all_tied_weights_keys)}  # fmt: skip


def _converted_names(file: GgufFile, model: PreTrainedModel) -> dict[str, str]:
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    from transformers.integrations.gguf.utils import get_gguf_conversion_mapping

    mapping = get_gguf_conversion_mapping(file.architecture, model.config)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    held = {*model.state_dict()}
    names = {name: str(rename_source_key(name, renamings, converters)[0]) for name in file.blocks}
    return {name: target for name, target in names.items() if target in held}


def _processor(architecture: str, parameters: dict[str, Any]) -> Any:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    return TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=parameters)


def _parameters(file: GgufFile) -> dict[str, Any]:
    """What the processors of transformers ask of a configuration."""
    own = file.metadata
    heads = own.get(f"{file.architecture}.attention.head_count")
    return {
        "num_attention_heads": heads,
        "n_head": heads,
        "num_key_value_heads": own.get(f"{file.architecture}.attention.head_count_kv", heads),
        "hidden_size": own.get(f"{file.architecture}.embedding_length"),
    }


# --- Weights -------------------------------------------------------------------------------------


class GgufWeights(Mapping[str, "LazyWeight"]):
    """The weights of a GGUF file by name, each read when it is asked for.

    Args:
        folder: where the files lie.
        architecture: what llama.cpp calls it.
        parameters: see `_parameters`.
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
        """The weights of a model's folder, as its index has them."""
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
        """Refuse a weight whose tensors do not fit it.

        Raises:
            ValueError: the shape, or the number of values, is another one.
        """
        first = weight.blocks[0]
        held = sum(int(np.prod(blocks.shape, dtype=np.int64)) for blocks in weight.blocks)
        wanted = int(np.prod(weight.shape, dtype=np.int64))
        plain = len(weight.blocks) == 1 and self._is_plain(weight)
        if held != wanted or (plain and first.shape != weight.shape):
            shapes = " and ".join(f"{each.name} {list(each.shape)}" for each in weight.blocks)
            raise ValueError(
                f"{first.file}: tensor {shapes} does not fit the weight {weight.name} "
                f"{list(weight.shape)} of the model that its metadata describes"
            )

    def rows(self, weight: Weight, start: int, stop: int) -> torch.Tensor:
        """Rows of a weight, all axes but the last taken as one: (row, column) in float32."""
        if len(weight.blocks) > 1:
            return self._stacked(weight, start, stop)
        if size := self.head_rows(weight):
            return self._rows_of_heads(weight, size, start, stop)
        if self._is_plain(weight):
            return _tensor(self._reader.rows(weight.blocks[0], start, stop))
        return self._whole(weight).reshape(weight.rows, -1)[start:stop]

    def head_rows(self, weight: Weight) -> int | None:
        """Rows of a head, where llama.cpp's converter reorders the rows of each head; or None."""
        blocks = weight.blocks[0]
        kind = re.search(r"\.attn_(q|k)\.weight$", blocks.name)
        if self._architecture != "llama" or kind is None:
            return None
        key = "num_attention_heads" if kind[1] == "q" else "num_key_value_heads"
        return blocks.rows // int(self._parameters[key])

    def _rows_of_heads(self, weight: Weight, size: int, start: int, stop: int) -> torch.Tensor:
        """Rows of a weight, put in their order head by head: a matrix may be large."""
        first, last = start // size, -(-stop // size)
        (blocks,) = weight.blocks
        values = self._reader.rows(blocks, first * size, last * size)
        heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), last - first)
        ordered = _processor(self._architecture, heads).process(values, blocks.name).weights
        return _tensor(ordered)[start - first * size : stop - first * size]

    def _is_plain(self, weight: Weight) -> bool:
        """Whether the values lie as the model has them, and need no more than to be dequantized."""
        blocks = weight.blocks[0]
        if blocks.name.endswith(("_exps.weight",)):
            return True
        probe = np.broadcast_to(np.float32(1), blocks.shape)
        return self._processed(blocks, probe, weight) is probe

    def _whole(self, weight: Weight) -> torch.Tensor:
        (blocks,) = weight.blocks
        values = self._reader.rows(blocks, 0, blocks.rows).reshape(blocks.shape)
        made = _tensor(self._processed(blocks, values, weight))
        if tuple(made.shape) != weight.shape:
            raise ValueError(
                f"{blocks.file}: tensor {blocks.name} becomes {list(made.shape)}, and "
                f"{weight.name} has {list(weight.shape)}"
            )
        return made

    def _processed(self, blocks: Blocks, values: Any, weight: Weight) -> Any:
        """What transformers makes of a tensor's values, to undo what llama.cpp did to them."""
        parsed: dict[str, Any] = {"tensors": {}}
        given = self._processor.process(
            weights=values,
            name=blocks.name,
            tensor_key_mapping={blocks.name.removesuffix(".weight"): weight.name},
            parsed_parameters=parsed,
        )
        return given.weights if given.name is not None else next(iter(parsed["tensors"].values()))

    @cached_property
    def _processor(self) -> Any:
        return _processor(self._architecture, self._parameters)

    def _stacked(self, weight: Weight, start: int, stop: int) -> torch.Tensor:
        """Rows of fused gates and ups: of each expert those of the gate, then those of the up."""
        heights = [blocks.rows // weight.shape[0] for blocks in weight.blocks]
        height = sum(heights)
        made = torch.empty(stop - start, weight.shape[-1])
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
            made[row - start : row - start + count] = _tensor(part)
            row += count
        return made


class LazyWeight:
    """A weight that is read when transformers loads it: `weight[...].to(dtype=…)`."""

    def __init__(self, weights: GgufWeights, weight: Weight) -> None:
        self._weights = weights
        self.weight = weight

    @property
    def shape(self) -> torch.Size:
        """As the model has it."""
        return torch.Size(self.weight.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.weight.size

    def __getitem__(self, index: Any) -> LazyWeight:
        assert index is Ellipsis, "transformers takes a weight whole"
        return self

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """See `GgufWeights.rows`."""
        return self._weights.rows(self.weight, start, stop)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight in a dtype, rounded once, a piece at a time."""
        rows, columns = self.weight.rows, self.weight.shape[-1]
        made = torch.empty(rows, columns, dtype=dtype or torch.float32)
        step = max(1, PIECE // columns) if self._pieces() else rows
        if size := self._weights.head_rows(self.weight):
            step = max(1, PIECE // columns // size) * size
        for start in range(0, rows, step):
            made[start : start + step] = self.rows(start, min(start + step, rows))
        return made.reshape(self.weight.shape).to(device=device)

    def _pieces(self) -> bool:
        return len(self.weight.blocks) > 1 or self._weights._is_plain(self.weight)


def _tensor(values: Any) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values
    return torch.from_numpy(np.ascontiguousarray(values, np.float32).copy())


def write_index(folder: Path, file: GgufFile, weights: Sequence[Weight]) -> None:
    """Write which tensors make which weight."""
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
