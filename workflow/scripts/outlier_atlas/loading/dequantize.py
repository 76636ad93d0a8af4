"""Quantizers that dequantize weights one by one while transformers reads them.

transformers has its own dequantization, with three faults. It scales a weight wrongly whose edge
cuts a block of FP8 (the `kv_a_proj_with_mqa` of DeepSeek-V3). It leaves weights that are not packed
in the dtype of the file. For MXFP4 it takes several times the memory of the result. So these
quantizers are registered in its place.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

from outlier_atlas.checkpoint.quantization import WIDE, quantization_settings, scale_block
from outlier_atlas.conversion.dense import Bits, bits_of, scaled, transposed_mxfp4
from outlier_atlas.conversion.memory import empty
from outlier_atlas.conversion.work import Job, run

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

SCALED, PACKED = "outlier-atlas-fp8", "outlier-atlas-mxfp4"
"""Names of these quantizers in transformers."""


def dequantizing_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration with which `from_pretrained` dequantizes weights."""
    settings = quantization_settings(config)
    copied = copy.deepcopy(config)
    copied.quantization_config = {
        "quant_method": PACKED if settings["quant_method"] == "mxfp4" else SCALED,
        "weight_block_size": scale_block(settings),
    }
    return copied


def dequantize_fp8(
    codes: torch.Tensor, scales: torch.Tensor, block: Sequence[int] | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return a weight of 8 bits times the scales of its blocks, in float32 and rounded once.

    Args:
        codes: (rows, columns), float8.
        scales: (rows of blocks, columns of blocks); blocks at the edges may be cut. Bytes are
            powers of two in the format E8M0.
        block: rows and columns of a block; None if the whole weight has one scale.
        dtype: dtype of the result.
    """
    dense = empty(codes.shape, dtype)
    run(_scaled(codes, scales, block, dtype, bits_of(dense)))
    return dense


def _scaled(
    codes: torch.Tensor,
    scales: torch.Tensor,
    block: Sequence[int] | None,
    dtype: torch.dtype,
    out: Bits,
) -> Iterator[Job]:
    height, width = block or codes.shape
    factors = scales.reshape(_grid(codes, block))
    return scaled(codes, factors, (height, width), dtype, out)


def scales_fit(codes: torch.Tensor, scales: torch.Tensor, block: Sequence[int] | None) -> bool:
    """Return whether the shape of scales fits the blocks of a weight; see `dequantize_fp8`."""
    if codes.dim() != 2 or block is None:
        return codes.dim() == 2 and scales.numel() == 1
    return tuple(scales.shape) == _grid(codes, block)


def _grid(codes: torch.Tensor, block: Sequence[int] | None) -> tuple[int, ...]:
    """Return the numbers of blocks along each axis of a weight."""
    sizes = block or codes.shape
    return tuple(-(-length // size) for length, size in zip(codes.shape, sizes, strict=True))


def dequantize_mxfp4(
    blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return the experts of gpt_oss from MXFP4, transposed for its forward pass and rounded once.

    Args:
        blocks: (expert, out, block, 16), bytes of two codes each, the low code first.
        scales: (expert, out, block), powers of two in the format E8M0.
        dtype: dtype of the result.

    Returns:
        (expert, in, out), where `in` is 32 times the number of blocks.
    """
    experts, outputs, block_count, size = blocks.shape
    dense = empty((experts, 2 * block_count * size, outputs), dtype)
    bits = bits_of(dense)
    run(
        job
        for expert in range(experts)
        for job in transposed_mxfp4(blocks[expert], scales[expert], dtype, bits[expert])
    )
    return dense


class Operation(ConversionOps):  # type: ignore[misc]
    """Operation of transformers on the tensors of a weight as they are read."""

    def __init__(self, quantizer: Any) -> None:
        self.hf_quantizer = quantizer  # with it, tensors are passed as they are in the file

    def __deepcopy__(self, _: Any) -> Operation:
        return self  # transformers copies its operations, with the quantizer, for every tensor


class Scale(Operation):
    """Scaling of weights with a `weight_scale_inv`, of one module or of all experts of a layer.

    Weights without scales are converted to the model's dtype. If scales are missing or do not fit,
    all weights stay codes, and the loader refuses them.
    """

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, model: nn.Module, **_: Any
    ) -> dict[str, Any]:
        """Return lists of tensors by name; a single weight has its full name."""
        names = [key for key in input_dict if not key.endswith(("_scale_inv", "_scale"))]
        parts = [(input_dict.pop(n), input_dict.pop(f"{n}_scale_inv", [])) for n in names]
        dtype = dtype_of(model, full_layer_name)
        if all(self.fit(*part) for part in parts):
            parts = [(self._dense(*part, dtype), []) for part in parts]
        return {
            full_layer_name if name == "weight" else name: weights
            for name, (weights, _) in zip(names, parts, strict=True)
        }

    @property
    def _block(self) -> Sequence[int] | None:
        block: Sequence[int] | None = self.hf_quantizer.quantization_config.weight_block_size
        return block

    def fit(self, weights: list[torch.Tensor], scales: list[torch.Tensor]) -> bool:
        """Return whether weights have their scales, or need none."""
        if not scales:
            return all(weight.element_size() > 1 for weight in weights)
        pairs = zip(weights, scales, strict=False)
        return len(weights) == len(scales) and all(scales_fit(*pair, self._block) for pair in pairs)

    def jobs(
        self, codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype, out: Bits
    ) -> Iterator[Job]:
        """Return jobs that write the bits of a weight to `out`."""
        return _scaled(codes, scales, self._block, dtype, out)

    def _dense(
        self, weights: list[torch.Tensor], scales: list[torch.Tensor], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        if not scales:
            return [weight.to(dtype) for weight in weights]
        return [dequantize_fp8(*p, self._block, dtype) for p in zip(weights, scales, strict=True)]


class Unpack(Operation):
    """Unpacking of experts in `_blocks` and `_scales`.

    The weight is missing if one of the two is missing.
    """

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, model: nn.Module, **_: Any
    ) -> dict[str, Any]:
        """Return the weight by its full name."""
        parts = {key.rpartition("_")[2]: tensors[0] for key, tensors in input_dict.items()}
        if set(parts) != {"blocks", "scales"}:
            return {}
        dtype = dtype_of(model, full_layer_name)
        return {full_layer_name: dequantize_mxfp4(parts["blocks"], parts["scales"], dtype)}


def dtype_of(model: nn.Module, name: str) -> torch.dtype:
    """Return the dtype of a parameter or buffer."""
    module, attribute = get_module_from_name(model, name)
    dtype: torch.dtype = getattr(module, attribute).dtype
    return dtype


class _Plain:
    """Mixin for quantizers whose loaded model is not quantized, and needs no device or package."""

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Accept any environment."""

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype) -> torch.dtype | None:
        """Return the dtype to read a tensor in; None keeps the dtype of codes without scales."""
        is_weight = param.get_dtype() in WIDE
        new: torch.dtype | None = super().get_new_dtype(converter, param, dtype)  # type: ignore[misc]
        return new if is_weight else None

    def _process_model_before_weight_loading(self, *_: Any, **__: Any) -> None:
        pass

    def _process_model_after_weight_loading(self, *_: Any, **__: Any) -> None:
        pass


@register_quantizer(SCALED)
class ScaledQuantizer(_Plain, FineGrainedFP8HfQuantizer):  # type: ignore[misc]
    """Quantizer of FP8 weights with scales for blocks or for whole weights."""

    def get_load_operations(self) -> dict[str, type]:
        """Return the operations by name, as transformers expects them."""
        return {"dequantize": Scale}


@register_quantizer(PACKED)
class PackedQuantizer(_Plain, Mxfp4HfQuantizer):  # type: ignore[misc]
    """Quantizer of MXFP4 weights as in gpt_oss."""

    def get_load_operations(self) -> dict[str, type]:
        """Return the operations by name, as transformers expects them."""
        return {"dequantize": Unpack}


@register_quantization_config(PACKED)
@register_quantization_config(SCALED)
class Dequantize(QuantizationConfigMixin):  # type: ignore[misc]
    """Configuration of these quantizers.

    Args:
        quant_method: name of the quantizer.
        weight_block_size: rows and columns of a block; None if a weight has one scale.
    """

    dequantize = True

    def __init__(self, quant_method: str, weight_block_size: Sequence[int] | None) -> None:
        self.quant_method = quant_method
        self.weight_block_size = weight_block_size
