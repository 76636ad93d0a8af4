"""Placement of a layer group on its devices, each of which gets consecutive layers.

All modules that are no layers are on the first device. Inputs of a module from another device are
moved before it runs; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from outlier_atlas.compat.torch_internals import apply_to_own_tensors, tree_map_only
from outlier_atlas.loading.partial import weight_bytes


def spread(weights: Sequence[int], parts: int) -> list[range]:
    """Divide a sequence into consecutive parts, so that the heaviest part is as light as possible.

    Args:
        weights: weight of each item.
        parts: number of parts, at most the number of items, so that no part is empty.

    Returns:
        The indices of each part.
    """

    @cache
    def best(start: int, parts: int) -> tuple[int, tuple[int, ...]]:
        """Return the weight of the heaviest part from `start` on, and the ends of the parts."""
        if parts == 1:
            return sum(weights[start:]), (len(weights),)
        candidates = []
        for stop in range(start + 1, len(weights) - parts + 2):
            heaviest, stops = best(stop, parts - 1)
            candidates.append((max(sum(weights[start:stop]), heaviest), (stop, *stops)))
        return min(candidates)

    stops = best(0, parts)[1]
    return [range(*part) for part in zip((0, *stops), stops, strict=False)]


def move_to_devices(model: nn.Module, stack: str, layers: range, devices: Sequence[str]) -> None:
    """Move a layer group to its devices.

    Args:
        model: decoder with the weights of `layers`.
        stack: path of the decoder stack.
        layers: layers of the group.
        devices: at most as many devices as layers; the first layer goes to the first device.
    """
    if len(devices) == 1:
        model.to(devices[0])
        return
    blocks = [model.get_submodule(f"{stack}.{layer}") for layer in layers]
    weights = [weight_bytes(block) for block in blocks]
    weights[0] += weight_bytes(model) - sum(weights)
    for device, part in zip(devices, spread(weights, len(devices)), strict=True):
        for index in part:
            _put(blocks[index], device)
    for parent in _parents(model, stack):
        apply_to_own_tensors(parent, lambda tensor: tensor.to(devices[0]))
        for child in parent.children():
            if child not in (*_parents(model, stack), model.get_submodule(stack)):
                _put(child, devices[0])


def _parents(model: nn.Module, stack: str) -> list[nn.Module]:
    """Return the modules that contain the stack."""
    names = stack.split(".")
    return [model.get_submodule(".".join(names[:depth])) for depth in range(len(names))]


def _put(module: nn.Module, device: str) -> None:
    """Move a module to a device, and its inputs before each call."""
    module.to(device)
    module.register_forward_pre_hook(partial(_move_inputs, device), with_kwargs=True)


def _move_inputs(device: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (args, kwargs))
