"""Assembly of the experts of a layer, which a checkpoint stores one by one, into fused tensors.

transformers stacks the experts of each projection and concatenates the stacks. Each step copies all
of them to memory that the system has to clear first. Here each expert is converted, or copied,
straight to its place in the fused tensor.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
)

from outlier_atlas.conversion.dense import bits_of, copied
from outlier_atlas.conversion.memory import empty
from outlier_atlas.conversion.work import Job, run
from outlier_atlas.loading.dequantize import Operation, Scale, dtype_of

if TYPE_CHECKING:
    from torch import nn

Stack = tuple[list[torch.Tensor], list[torch.Tensor]]
"""The weights of all experts and their scales; no scales if the weights are not quantized."""

COPIED = (torch.bfloat16, torch.float16, torch.float32)
"""Dtypes of weights that are copied."""


def assembling(conversions: Sequence[Any]) -> list[Any]:
    """Return the weight conversions of transformers, in which experts are assembled in one step."""
    return [_assembling(conversion) for conversion in conversions]


def _assembling(conversion: Any) -> Any:
    operations = getattr(conversion, "operations", None) or []
    steps = [step for step in operations if not isinstance(step, Scale)]
    kinds = [type(step) for step in steps]
    if type(conversion) is not WeightConverter:
        return conversion
    is_stack = kinds[:1] == [MergeModulelist] and steps[0].dim == 0
    joined = kinds == [MergeModulelist, Concatenate] and steps[1].dim == 1
    if not is_stack or not (len(kinds) == 1 or joined):
        return conversion
    changed = copy.copy(conversion)
    changed.operations = [Assemble(operations)]
    changed.__class__ = _Converter
    return changed


class _Converter(WeightConverter):  # type: ignore[misc]
    """Converter that is copied quickly: transformers copies it for every tensor of an expert."""

    __slots__ = ()

    def __deepcopy__(self, _: Any) -> _Converter:
        copied = copy.copy(self)
        copied.collected_tensors, copied.layer_targets = defaultdict(list), defaultdict(set)
        return copied


class Assemble(Operation):
    """Operation that does what a chain of operations of transformers does, with one copy.

    Args:
        operations: the chain: scaling if weights are quantized, stacking, and for several sources
            concatenation. It runs as it is if the tensors are not those of equal experts.
    """

    def __init__(self, operations: Sequence[ConversionOps]) -> None:
        first = operations[0]
        self._scale = first if isinstance(first, Scale) else None
        super().__init__(self._scale.hf_quantizer if self._scale else None)
        self._operations = operations

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        full_layer_name: str,
        model: nn.Module,
        **more: Any,
    ) -> dict[str, Any]:
        """Return the fused weight."""
        settings = {
            "source_patterns": source_patterns, "target_patterns": target_patterns,
            "full_layer_name": full_layer_name, "model": model, **more,
        }  # fmt: skip
        stacks = self._stacks(input_dict, source_patterns)
        dtype = None if stacks is None else self._dtype_of(stacks, dtype_of(model, full_layer_name))
        if stacks is None or dtype is None or len(target_patterns) != 1:
            for operation in self._operations:
                input_dict = operation.convert(input_dict, **settings)
            return input_dict
        experts, columns = len(stacks[0][0]), stacks[0][0][0].shape[1]
        rows = sum(weights[0].shape[0] for weights, _ in stacks)
        fused = empty((experts, rows, columns), dtype)
        run(self._jobs(stacks, fused))
        input_dict.clear()
        return {target_patterns[0]: fused}

    def _stacks(self, tensors: dict[str, Any], patterns: Sequence[str]) -> list[Stack] | None:
        """Return the weights and scales of all experts, by source; None if they do not fit."""
        names = [n for n in patterns if n in tensors and not n.endswith(("_scale_inv", "_scale"))]
        stacks = [(tensors[name], tensors.get(f"{name}_scale_inv", [])) for name in names]
        equal = all(
            weights
            and len(weights) == len(stacks[0][0])
            and weights[0].dim() == 2
            and weights[0].shape[1] == stacks[0][0][0].shape[1]
            and all(weight.shape == weights[0].shape for weight in weights)
            for weights, _ in stacks
        )
        return stacks if stacks and equal else None

    def _dtype_of(self, stacks: Sequence[Stack], planned: torch.dtype) -> torch.dtype | None:
        """Return the dtype of the fused weight; None if some tensors cannot be converted here."""
        if self._scale is not None and all(scales for _, scales in stacks):
            return planned if all(self._scale.fit(*stack) for stack in stacks) else None
        dtypes = {weight.dtype for weights, _ in stacks for weight in weights}
        scaled = any(scales for _, scales in stacks)
        return None if scaled or len(dtypes) > 1 or not dtypes <= {*COPIED} else dtypes.pop()

    def _jobs(self, stacks: Sequence[Stack], fused: torch.Tensor) -> Iterator[Job]:
        bits, first = bits_of(fused), 0
        for weights, scales in stacks:
            stop = first + weights[0].shape[0]
            for expert, weight in enumerate(weights):
                out = bits[expert, first:stop]
                if self._scale is None or not scales:
                    yield from copied(weight, out)
                else:
                    yield from self._scale.jobs(weight, scales[expert], fused.dtype, out)
            first = stop
