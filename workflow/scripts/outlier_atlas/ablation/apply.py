"""Application of a variant's edits to the model of a layer group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import get_args

import torch
from torch import nn

from outlier_atlas.ablation.variants import (
    Edit,
    SetChannel,
    SetMassive,
    Weight,
    ZeroExpert,
    ZeroExpertWeight,
    ZeroWeight,
)
from outlier_atlas.roles.architecture import Architecture
from outlier_atlas.roles.block_sites import Tap, is_transposed, width
from outlier_atlas.roles.experts import biases, down_projection
from outlier_atlas.settings.sites import EXPERT_OUT, AlterableSite
from outlier_atlas.statistics.medians import sequence_median

MEDIAN_TOKENS = 64
"""Number of tokens of a sequence that are copied together to find a median."""


def tap_of(architecture: Architecture, site: str, layer: int) -> Tap:
    """Return the tap at which channels of a site are set.

    Raises:
        ValueError: the model has no such layer or site, or the measured value is only a part of
            what the model uses after the site.
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
        raise ValueError(f"ablation: {name} has no {site} in layer {layer} that can be identified")
    return tap


def alterations(
    architecture: Architecture, edits: Sequence[Edit], layers: range
) -> dict[Tap, Callable[[torch.Tensor], torch.Tensor]]:
    """Return functions that alter activations of some layers, by tap.

    Args:
        architecture: architecture of the model.
        edits: edits of a variant.
        layers: layers of the layer group; edits of other layers are ignored.
    """
    channels: dict[Tap, dict[int, float]] = defaultdict(dict)
    massive: dict[Tap, list[SetMassive]] = defaultdict(list)
    for edit in edits:
        if edit.layer in layers and isinstance(edit, SetChannel):
            channels[tap_of(architecture, edit.site, edit.layer)][edit.channel] = edit.value
        elif edit.layer in layers and isinstance(edit, SetMassive):
            massive[tap_of(architecture, edit.site, edit.layer)].append(edit)
    return {
        tap: partial(_altered, tap, channels.get(tap, {}), massive.get(tap, []))
        for tap in {**channels, **massive}
    }


def _altered(
    tap: Tap,
    channels: Mapping[int, float],
    massive: Sequence[SetMassive],
    tensor: torch.Tensor,
) -> torch.Tensor:
    """Return a copy of the tensor of one sequence, channels last, with all edits of a tap."""
    copy = tap.altered(tensor, channels)
    rows, own = copy.reshape(-1, copy.shape[-1]), tap.positions(tensor)
    # Massive activations are those of the unedited sequence.
    site = tensor.reshape(rows.shape)[:, own]
    for edit in massive:
        tokens = massive_tokens(site, edit)
        values = torch.where(tokens == 0, edit.first, edit.others).to(rows)
        rows[tokens, own[edit.set_channel]] = values
    return rows.reshape(copy.shape)


def massive_tokens(x: torch.Tensor, edit: SetMassive) -> torch.Tensor:
    """Return the tokens of a sequence at which a channel is massive, ascending.

    Args:
        x: values of the site for the whole sequence, (token, channel).
        edit: the edit, with the criterion.
    """
    own = x[:, edit.channel].float().abs()
    tokens = torch.nonzero(own.isfinite() & (own > edit.absolute))[:, 0]
    if not len(tokens):
        return tokens
    # Only candidates and parts are copied: the memory plan counts no copy of a whole sequence.
    # Both functions return the lower of the two middle values.
    if edit.median == "tensor":
        median = torch.tensor(sequence_median(torch.split(x, MEDIAN_TOKENS)), dtype=torch.float64)
    else:
        candidates = x[tokens].float().abs().cpu()
        finite = torch.where(candidates.isfinite(), candidates, torch.nan)
        median = finite.nanmedian(1).values.double()
    return tokens[(own[tokens].cpu().double() >= edit.ratio * median).to(x.device)]


@contextmanager
def weights_zeroed(
    decoder: nn.Module, architecture: Architecture, edits: Sequence[Edit], layers: range
) -> Iterator[None]:
    """Set the weights that edits name to zero in the block, and restore them after it.

    Args:
        decoder: decoder of the layer group.
        architecture: architecture of the model.
        edits: edits of a variant; edits of activations are ignored.
        layers: layers of the layer group; edits of other layers are ignored.
    """
    before = []
    try:
        for edit in edits:
            if isinstance(edit, SetChannel | SetMassive) or edit.layer not in layers:
                continue
            for weight, index in _weights(decoder, architecture, edit):
                before.append((weight, index, weight[index].clone()))
                weight[index] = 0
        yield
    finally:
        for weight, index, value in reversed(before):
            weight[index] = value


def experts_of(architecture: Architecture, layer: int) -> Tap:
    """Return the tap of the fused experts of a layer.

    Raises:
        ValueError: the model has no such layer, or no routed experts in it with a known output.
    """
    sites = architecture.taps[layer] if layer < architecture.layers else {}
    if EXPERT_OUT not in sites:
        raise ValueError(
            f"ablation.expert_weights: {architecture.model_class.__name__} has no routed experts "
            f"in layer {layer} that can be identified"
        )
    return sites[EXPERT_OUT]


def weight_at(decoder: nn.Module, architecture: Architecture, weight: Weight) -> float:
    """Return a weight of a down projection in the model."""
    ((parameter, index),) = _weights(decoder, architecture, weight)
    return float(parameter[index])


Entry = tuple[torch.Tensor, tuple[int, ...]]
"""A parameter and an index into it."""


def _weights(
    decoder: nn.Module, architecture: Architecture, edit: Weight | ZeroExpert
) -> list[Entry]:
    if isinstance(edit, ZeroExpert):
        experts = decoder.get_submodule(experts_of(architecture, edit.layer).module)
        down = down_projection(experts)
        assert down is not None
        # A bias before the down projection has no effect if the down projection is zero.
        return [(parameter, (edit.expert,)) for parameter in (down, *biases(experts))]
    if isinstance(edit, ZeroExpertWeight):
        return [_weight_of_expert(decoder, architecture, edit)]
    return [_weight_of_layer(decoder, architecture, edit)]


def _weight_of_layer(decoder: nn.Module, architecture: Architecture, edit: ZeroWeight) -> Entry:
    module = decoder.get_submodule(tap_of(architecture, "mlp_hidden", edit.layer).module)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    transposed = tuple(weight.shape) == width(module) and not isinstance(module, nn.Linear)
    return weight, (edit.column, edit.row) if transposed else (edit.row, edit.column)


def _weight_of_expert(
    decoder: nn.Module, architecture: Architecture, edit: ZeroExpertWeight
) -> Entry:
    experts = decoder.get_submodule(experts_of(architecture, edit.layer).module)
    weight = down_projection(experts)
    assert weight is not None
    place = (edit.row, edit.column)
    transposed = is_transposed(experts, architecture.hidden_size)
    if transposed is None:
        raise ValueError(
            f"ablation.expert_weights: rows and columns of an expert of layer {edit.layer} cannot "
            f"be told apart in {architecture.model_class.__name__}; leave its weights out"
        )
    return weight, (edit.expert, *(place[::-1] if transposed else place))
