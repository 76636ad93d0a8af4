"""The layers of one layer group on its devices, each with a run of them.

All that is not a layer lies on the first device. Where a module's inputs come from another device
they are moved before it runs; nothing else changes.
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
    """Consecutive things in parts, the heaviest of which is as light as can be.

    Args:
        weights: of each thing.
        parts: how many; at most as many as there are things, so that none is empty.
    """

    @cache
    def best(start: int, parts: int) -> tuple[int, tuple[int, ...]]:
        """Of the things from `start`: the weight of their heaviest part, and where parts end."""
        if parts == 1:
            return sum(weights[start:]), (len(weights),)
        found = []
        for stop in range(start + 1, len(weights) - parts + 2):
            heaviest, stops = best(stop, parts - 1)
            found.append((max(sum(weights[start:stop]), heaviest), (stop, *stops)))
        return min(found)

    stops = best(0, parts)[1]
    return [range(*part) for part in zip((0, *stops), stops, strict=False)]


def place(model: nn.Module, stack: str, layers: range, devices: Sequence[str]) -> None:
    """Move a layer group to its devices.

    Args:
        model: the decoder, with the weights of `layers`.
        stack: path of the decoder stack.
        devices: at most as many as there are layers; the first layer goes to the first.
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
    for around in _around(model, stack):
        apply_to_own_tensors(around, lambda tensor: tensor.to(devices[0]))
        for child in around.children():
            if child not in (*_around(model, stack), model.get_submodule(stack)):
                _put(child, devices[0])


def _around(model: nn.Module, stack: str) -> list[nn.Module]:
    """The modules that the stack lies in."""
    way = stack.split(".")
    return [model.get_submodule(".".join(way[:depth])) for depth in range(len(way))]


def _put(module: nn.Module, device: str) -> None:
    module.to(device)
    module.register_forward_pre_hook(partial(_move_inputs, device), with_kwargs=True)


def _move_inputs(device: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (args, kwargs))
