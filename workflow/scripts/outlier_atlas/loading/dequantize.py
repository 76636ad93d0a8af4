"""Dequantizing weights while transformers reads them, one by one, into the dtype of the run.

transformers can do so itself; but it scales a weight wrongly whose edge cuts a block of FP8 (the
`kv_a_proj_with_mqa` of DeepSeek-V3), leaves what is not packed in the dtype of the file, and for
MXFP4 takes several times the memory of what it makes. So it is given quantizers of ours.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import embedding
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

from outlier_atlas.checkpoint.quantization import WIDE, block_of, settings_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

SCALED, PACKED = "outlier-atlas-fp8", "outlier-atlas-mxfp4"
"""What our quantizers are called among those of transformers."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What codes of four bits stand for (OCP Microscaling Formats, version 1.0)."""

STRIP = 128
"""Rows, at least, that are scaled at a time: in float32 they take four times the bytes."""


def dequantizing(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with which `from_pretrained` dequantizes what it reads."""
    settings = settings_of(config)
    ours = copy.deepcopy(config)
    ours.quantization_config = {
        "quant_method": PACKED if settings["quant_method"] == "mxfp4" else SCALED,
        "weight_block_size": block_of(settings),
    }
    return ours


def scaled(
    codes: torch.Tensor, scales: torch.Tensor, block: Sequence[int] | None, dtype: torch.dtype
) -> torch.Tensor:
    """A weight of 8 bits times the scales of its blocks, computed in float32 and rounded once.

    Args:
        codes: (rows, columns) float8.
        scales: (rows of blocks, columns of blocks); blocks at the edges may be cut. Bytes stand for
            powers of two, in the format E8M0.
        block: rows and columns of a block; None where the whole weight has one scale.
        dtype: of the result.
    """
    rows, columns = codes.shape
    height, width = block or (rows, columns)
    factors = _powers(scales) if scales.dtype == torch.uint8 else scales.float()
    factors = factors.reshape(_grid(codes, block))
    dense = torch.empty(rows, columns, dtype=dtype)
    strip = height * -(-STRIP // height)
    for first in range(0, rows, strip):
        part = codes[first : first + strip].float()
        spread = factors[first // height : (first + strip) // height]
        spread = spread.repeat_interleave(height, 0)[: len(part)].repeat_interleave(width, 1)
        dense[first : first + strip] = part * spread[:, :columns]
    return dense


def fits(codes: torch.Tensor, scales: torch.Tensor, block: Sequence[int] | None) -> bool:
    """Whether the scales are those of the blocks of a weight; see `scaled`."""
    if codes.dim() != 2 or block is None:
        return codes.dim() == 2 and scales.numel() == 1
    return tuple(scales.shape) == _grid(codes, block)


def _grid(codes: torch.Tensor, block: Sequence[int] | None) -> tuple[int, ...]:
    sizes = block or codes.shape
    return tuple(-(-length // size) for length, size in zip(codes.shape, sizes, strict=True))


def unpacked(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The experts of gpt_oss, each transposed as its forward pass wants it, rounded once.

    Args:
        blocks: (expert, out, block, 16) bytes of two codes each, the low one first.
        scales: (expert, out, block) powers of two, in the format E8M0.
        dtype: of the result.

    Returns:
        (expert, in, out); `in` is 32 times the number of blocks.
    """
    experts, outward, many, size = blocks.shape
    dense = torch.empty(experts, 2 * many * size, outward, dtype=dtype)
    values = torch.tensor(E2M1)
    pairs = torch.stack([values.repeat(16), values.repeat_interleave(16)], dim=-1)
    for expert in range(experts):
        wide = embedding(blocks[expert].int(), pairs).view(outward, many, -1)
        wide *= _powers(scales[expert])[..., None]
        dense[expert] = wide.view(outward, -1).to(dtype).T
    return dense


def _powers(exponents: torch.Tensor) -> torch.Tensor:
    return exponents.view(torch.float8_e8m0fnu).float()


class _Operation(ConversionOps):  # type: ignore[misc]
    """What a quantizer has transformers do with the tensors of a weight as they are read."""

    def __init__(self, quantizer: Any) -> None:
        self.hf_quantizer = quantizer  # for this the tensors come as they are in the file


class Scale(_Operation):
    """Weights with `weight_scale_inv`: of one module, or of all experts of a layer.

    What has no scale is brought into its dtype. Where codes lack scales that fit, all stay codes:
    the loader finds them.
    """

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, model: nn.Module, **_: Any
    ) -> dict[str, Any]:
        """Lists of tensors by name; that of a single weight is the full one."""
        names = [key for key in input_dict if not key.endswith(("_scale_inv", "_scale"))]
        parts = [(input_dict.pop(n), input_dict.pop(f"{n}_scale_inv", [])) for n in names]
        dtype = _dtype(model, full_layer_name)
        if all(self._fit(*part) for part in parts):
            parts = [(self._dense(*part, dtype), []) for part in parts]
        return {
            full_layer_name if name == "weight" else name: weights
            for name, (weights, _) in zip(names, parts, strict=True)
        }

    @property
    def _block(self) -> Sequence[int] | None:
        block: Sequence[int] | None = self.hf_quantizer.quantization_config.weight_block_size
        return block

    def _fit(self, weights: list[torch.Tensor], scales: list[torch.Tensor]) -> bool:
        if not scales:
            return all(weight.element_size() > 1 for weight in weights)
        pairs = zip(weights, scales, strict=False)
        return len(weights) == len(scales) and all(fits(*pair, self._block) for pair in pairs)

    def _dense(
        self, weights: list[torch.Tensor], scales: list[torch.Tensor], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        if not scales:
            return [weight.to(dtype) for weight in weights]
        return [scaled(*p, self._block, dtype) for p in zip(weights, scales, strict=True)]


class Unpack(_Operation):
    """Experts as `_blocks` and `_scales`; where one of them lacks, the weight is missing."""

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, model: nn.Module, **_: Any
    ) -> dict[str, Any]:
        """The weight by its full name."""
        parts = {key.rpartition("_")[2]: tensors[0] for key, tensors in input_dict.items()}
        if set(parts) != {"blocks", "scales"}:
            return {}
        dtype = _dtype(model, full_layer_name)
        return {full_layer_name: unpacked(parts["blocks"], parts["scales"], dtype)}


def _dtype(model: nn.Module, name: str) -> torch.dtype:
    module, attribute = get_module_from_name(model, name)
    dtype: torch.dtype = getattr(module, attribute).dtype
    return dtype


class _Plain:
    """The model that is loaded is a plain one, and needs no device, kernels or packages."""

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Nothing is asked for."""

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype) -> torch.dtype | None:
        """The dtype to read a tensor in; None leaves it, as it does codes that nothing scales."""
        wide = param.get_dtype() in WIDE
        new: torch.dtype | None = super().get_new_dtype(converter, param, dtype)  # type: ignore[misc]
        return new if wide else None

    def _process_model_before_weight_loading(self, *_: Any, **__: Any) -> None:
        pass

    def _process_model_after_weight_loading(self, *_: Any, **__: Any) -> None:
        pass


@register_quantizer(SCALED)
class ScaledQuantizer(_Plain, FineGrainedFP8HfQuantizer):  # type: ignore[misc]
    """FP8 with scales for blocks or for whole weights."""

    def get_load_operations(self) -> dict[str, type]:
        """As transformers asks for them."""
        return {"dequantize": Scale}


@register_quantizer(PACKED)
class PackedQuantizer(_Plain, Mxfp4HfQuantizer):  # type: ignore[misc]
    """MXFP4 as gpt_oss has it."""

    def get_load_operations(self) -> dict[str, type]:
        """As transformers asks for them."""
        return {"dequantize": Unpack}


@register_quantization_config(PACKED)
@register_quantization_config(SCALED)
class Dequantize(QuantizationConfigMixin):  # type: ignore[misc]
    """What our quantizers need to know."""

    dequantize = True

    def __init__(self, quant_method: str, weight_block_size: Sequence[int] | None) -> None:
        self.quant_method = quant_method
        self.weight_block_size = weight_block_size
