"""A variant's edits, on the model of a layer group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import torch
from torch import nn

from outlier_atlas.ablation.variants import Edit, SetChannel, ZeroWeight
from outlier_atlas.model.architecture import Architecture
from outlier_atlas.model.roles import Tap, width
from outlier_atlas.settings.sites import AlterableSite


def tap_of(architecture: Architecture, site: str, layer: int) -> Tap:
    """Where a channel of a site is set.

    Raises:
        ValueError: the model has no such layer, or no such site in it, or the value measured at
            the site is not all that goes on from it.
    """
    if site not in get_args(AlterableSite):
        raise ValueError(
            f"ablation: {site} is measured where it is read, and not all that goes on from there; "
            f"take {', '.join(get_args(AlterableSite))}"
        )
    if layer >= architecture.layers:
        raise ValueError(f"ablation: the model has no layer {layer}; it has {architecture.layers}")
    tap = next((t for t in architecture.taps[layer].values() if t.site == site), None)
    if tap is None:
        name = architecture.model_class.__name__
        raise ValueError(
            f"ablation: {name} has no {site} in layer {layer} that can be told for sure"
        )
    return tap


def values_by_tap(
    architecture: Architecture, edits: Sequence[Edit], layers: range
) -> dict[Tap, dict[int, float]]:
    """The channels that are set in these layers, by the place where they are."""
    values: dict[Tap, dict[int, float]] = defaultdict(dict)
    for edit in edits:
        if isinstance(edit, SetChannel) and edit.layer in layers:
            values[tap_of(architecture, edit.site, edit.layer)][edit.channel] = edit.value
    return values


@contextmanager
def weights_zeroed(
    decoder: nn.Module, architecture: Architecture, edits: Sequence[Edit], layers: range
) -> Iterator[None]:
    """The weights of these layers are zero while the block lasts, and as they were after it."""
    before = []
    try:
        for edit in edits:
            if isinstance(edit, ZeroWeight) and edit.layer in layers:
                weight, index = _weight(decoder, architecture, edit)
                before.append((weight, index, weight[index].clone()))
                weight[index] = 0
        yield
    finally:
        for weight, index, value in reversed(before):
            weight[index] = value


def _weight(
    decoder: nn.Module, architecture: Architecture, edit: ZeroWeight
) -> tuple[torch.Tensor, tuple[int, int]]:
    module = decoder.get_submodule(tap_of(architecture, "mlp_hidden", edit.layer).module)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    transposed = tuple(weight.shape) == width(module) and not isinstance(module, nn.Linear)
    return weight, (edit.column, edit.row) if transposed else (edit.row, edit.column)
