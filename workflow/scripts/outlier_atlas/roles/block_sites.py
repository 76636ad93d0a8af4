"""Sites in a block: the module whose input or output each of them is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from torch import nn

from outlier_atlas.roles.experts import DOWN_PROJECTIONS, down_projection, routed_experts
from outlier_atlas.roles.residual_flow import BlockFlow
from outlier_atlas.settings.sites import (
    ATTN_SINK,
    EXPERT_OUT,
    LINEAR_INPUTS,
    TOKEN_LOSS,
    Place,
    Site,
)

ATTENTION = re.compile(r"(Attention|Attn|DeltaNet)$")
"""Pattern for class names of attention modules."""
MLP = re.compile(r"(MLP|Mlp|FeedForward|FFN|MoE|Moe|Moe\w*Block|SparseMoeBlock)$")
"""Pattern for class names of MLPs and mixtures of experts."""
OUTPUT_PROJECTIONS = {"o_proj", "out_proj", "c_proj", "dense", "wo"}
"""Names of the output projection of attention."""
ROUTERS = {"gate", "router"}
"""Names of the router of a mixture of experts."""


@dataclass(frozen=True)
class Tap:
    """Point at which activations are taken: the input or output of a module, or a record inside it.

    Attributes:
        site: site to take. For losses, the tap takes the decoder's output, from which the head
            computes them.
        layer: 0-based layer.
        module: path of the module, relative to the decoder; empty for the decoder itself.
        side: input or output of the module; `experts` for `ExpertRecorder.largest` of fused
            experts; `attention` for `AttentionCall.received` of attention.
        channels: number of channels to take from the tensor's last axis; for fused experts, the
            number of experts per token; for attention, the number of query heads.
        ranges: first channel and end of each range of channels to take, in order; None for all.
        experts: number of fused experts; 0 for other modules.
        entries: number of weights in the down projection of one fused expert.
    """

    site: Place
    layer: int
    module: str
    side: Literal["input", "output", "experts", "attention"]
    channels: int
    ranges: tuple[tuple[int, int], ...] | None = None
    experts: int = 0
    entries: int = 0

    def take(self, tensor: torch.Tensor, batch: int, tokens: int) -> torch.Tensor:
        """Return the site's tensor (batch, token, channel) from the input or output of the module.

        Some modules receive all tokens of a batch along one axis.

        Args:
            tensor: input or output of the module, channels last.
            batch: number of sequences.
            tokens: number of tokens in a sequence.
        """
        values = tensor.reshape(batch, tokens, tensor.shape[-1])
        if self.ranges is None:
            return values
        parts = [values[..., first:stop] for first, stop in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def positions(self, tensor: torch.Tensor) -> list[int]:
        """Return the index of each of the site's channels on the last axis of a module's tensor."""
        return [c for bounds in self.ranges or ((0, tensor.shape[-1]),) for c in range(*bounds)]

    def altered(self, tensor: torch.Tensor, values: Mapping[int, float]) -> torch.Tensor:
        """Return a copy of a module's tensor with constant values in some channels of the site.

        Args:
            tensor: input or output of the module, channels last.
            values: value by channel of the site.
        """
        positions = self.positions(tensor)
        copy = tensor.clone()
        copy[..., [positions[channel] for channel in values]] = copy.new_tensor(
            list(values.values())
        )
        return copy


def tap_of_decoder(layer: int, channels: int) -> Tap:
    """Return the tap of the decoder's output, after the final norm.

    Args:
        layer: the last layer.
        channels: channels of the output.
    """
    return Tap(TOKEN_LOSS, layer, "", "output", channels)


def taps_of_block(
    block: nn.Module,
    flow: BlockFlow | None,
    path: str,
    layer: int,
    hidden: int,
) -> Iterator[Tap]:
    """Yield the taps of a block that can be identified, in the order of a forward pass.

    Args:
        block: the block.
        flow: trace of the block; None if it could not be traced.
        path: path of the block, relative to the decoder.
        layer: 0-based layer of the block.
        hidden: channels of the residual stream.
    """
    traced_block = _Block(block, flow, path, layer)
    yield from filter(traced_block.has, _taps(traced_block, hidden))


def _taps(block: _Block, hidden: int) -> Iterator[Tap]:
    """Yield the candidates for taps of a block, in the order of a forward pass."""
    flow = block.flow
    attention, mlp = block.only_child(ATTENTION), block.only_child(MLP)
    yield block.tap("resid_pre", "", "input", hidden)
    if attention:
        yield block.tap("attn_in", attention, "input", hidden)
        if flow:
            yield from _heads(block, flow, attention)
        yield from block.into_projection("attn_hidden", attention, OUTPUT_PROJECTIONS)
        if flow and (heads := flow.attention.get(attention)):
            yield block.tap(ATTN_SINK, attention, "attention", heads)
        if flow and (out := flow.contribution(attention)):
            yield block.tap("attn_out", out, "output", hidden)
    if mlp:
        if flow and (middle := flow.middle(mlp)):
            yield block.tap("resid_mid", middle, "input", hidden)
        yield block.tap("mlp_in", mlp, "input", hidden)
        yield from _router(block, mlp)
        yield from _experts(block, mlp)
        for tap in block.into_projection("mlp_hidden", mlp, DOWN_PROJECTIONS):
            yield tap
            yield replace(tap, site="down_proj_out", side="output", channels=hidden)
        if flow and (out := flow.contribution(mlp)):
            yield block.tap("mlp_out", out, "output", hidden)
    elif flow:
        yield from _mlp_without_module(block, flow, hidden)
    yield block.tap("resid_post", "", "output", hidden)


def readers_of_block(flow: BlockFlow, path: str, taps: Mapping[Place, Tap]) -> dict[str, Site]:
    """Return the site that each module reads as its input, by path relative to the decoder.

    If attention and the MLP read the same tensor, a module is assigned to the site of its own part.

    Args:
        flow: trace of the block.
        path: path of the block, relative to the decoder.
        taps: taps of the block by site.
    """
    readers: dict[str, Site] = {}
    for site in LINEAR_INPUTS:
        if site not in taps:
            continue
        inner_path = taps[site].module.removeprefix(f"{path}.")
        site_call = flow.calls.get(inner_path)
        for name, call in flow.calls.items():
            if (
                site_call
                and f"{name}.".startswith(f"{inner_path}.")
                and call.input is site_call.input
            ):
                readers[f"{path}.{name}"] = site
    return readers


@dataclass(frozen=True)
class _Block:
    """Block whose roles are identified.

    Attributes:
        block: the block.
        flow: trace of the block; None if it could not be traced.
        path: path of the block, relative to the decoder.
        layer: 0-based layer of the block.
    """

    block: nn.Module
    flow: BlockFlow | None
    path: str
    layer: int

    def tap(
        self,
        site: Site,
        module: str,
        side: Literal["input", "output", "attention"],
        channels: int,
        ranges: tuple[tuple[int, int], ...] | None = None,
    ) -> Tap:
        """Return a tap of a module in the block; an empty path is the block itself."""
        path = f"{self.path}.{module}" if module else self.path
        return Tap(site, self.layer, path, side, channels, ranges)

    def has(self, tap: Tap) -> bool:
        """Return whether the trace has the tensor of a tap, once and for each token."""
        if self.flow is None or tap.module == self.path:
            return True
        call = self.flow.calls.get(tap.module.removeprefix(f"{self.path}."))
        if call is None or call.input is None or not call.outputs:
            return False
        shape = call.input_shape if tap.side == "input" else call.output_shape
        any_width = tap.ranges is not None or tap.side in ("experts", "attention")
        rows, channels = prod(shape[:-1]), shape[-1:]
        return rows == prod(self.flow.shape[:-1]) and (any_width or channels == (tap.channels,))

    def only_child(self, pattern: re.Pattern[str]) -> str | None:
        """Return the name of the only child whose class name matches; None if several do."""
        matches = [
            name
            for name, child in self.block.named_children()
            if pattern.search(type(child).__name__)
        ]
        return matches[0] if len(matches) == 1 else None

    def named_modules_in(self, module: str, names: set[str]) -> list[tuple[str, nn.Module]]:
        """Return the modules inside a module that have one of the names, with their paths."""
        parent = self.block.get_submodule(module)
        return [
            (f"{module}.{path}", child)
            for path, child in parent.named_modules()
            if path.rpartition(".")[2] in names
        ]

    def into_projection(self, site: Site, module: str, names: set[str]) -> Iterator[Tap]:
        """Yield the input of the projection whose output is the module's output, if there is one.

        The output of a shared expert is only a part of the module's output.
        """
        module_call = self.flow.calls.get(module) if self.flow else None
        if self.flow is None or module_call is None or not module_call.outputs:
            return
        for path, child in self.named_modules_in(module, names):
            call, channels = self.flow.calls.get(path), width(child)[0]
            if channels and call and call.outputs and call.outputs[0] is module_call.outputs[0]:
                yield self.tap(site, path, "input", channels)
                return


def _heads(block: _Block, flow: BlockFlow, attention: str) -> Iterator[Tap]:
    """Yield queries, keys and values, in the order in which their projections are called."""
    order = list(flow.calls)
    for site, part in sorted(flow.heads.items(), key=lambda item: order.index(item[1].module)):
        if part.module.startswith(f"{attention}."):
            yield block.tap(site, part.module, "output", part.channels, part.ranges)


def _router(block: _Block, mlp: str) -> Iterator[Tap]:
    """Yield the router's logits if its first output is a matrix product, before any softmax."""
    for path, module in block.named_modules_in(mlp, ROUTERS):
        weight = getattr(module, "weight", None)
        call = block.flow.calls.get(path) if block.flow else None
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not call:
            continue
        experts = int(weight.shape[0])
        if call.outputs and call.outputs[0].is_product and call.outputs[0].shape[-1] == experts > 1:
            yield block.tap("router_logits", path, "output", experts)
            return


def _experts(block: _Block, mlp: str) -> Iterator[Tap]:
    """Yield the routed experts if they are fused and their computation can be traced."""
    parent = block.block.get_submodule(mlp)
    fused = [name for name, child in parent.named_children() if down_projection(child) is not None]
    if len(fused) != 1 or block.flow is None:
        return
    experts, call = parent.get_submodule(fused[0]), block.flow.calls.get(f"{mlp}.{fused[0]}")
    routed, down = call and routed_experts(experts, call), down_projection(experts)
    if routed and down is not None:
        path = f"{block.path}.{mlp}.{fused[0]}"
        entries = down[0].numel()
        yield Tap(EXPERT_OUT, block.layer, path, "experts", routed, None, len(down), entries)


def _mlp_without_module(block: _Block, flow: BlockFlow, hidden: int) -> Iterator[Tap]:
    """Yield the taps of an MLP without its own module: two linear layers of the block.

    The block adds the output of the second layer to the residual stream.
    """
    linear = {name: width(child) for name, child in block.block.named_children() if width(child)[0]}
    down = [name for name in linear if flow.contribution(name) == name]
    up = [name for name in linear if name not in down]
    if len(down) != 1 or len(up) != 1 or linear[up[0]][1] != linear[down[0]][0]:
        return
    if middle := flow.middle(up[0]):
        yield block.tap("resid_mid", middle, "input", hidden)
    yield block.tap("mlp_in", up[0], "input", hidden)
    yield block.tap("mlp_hidden", down[0], "input", linear[down[0]][0])
    yield block.tap("down_proj_out", down[0], "output", hidden)
    yield block.tap("mlp_out", down[0], "output", hidden)


def width(module: nn.Module) -> tuple[int, int]:
    """Return the channels into and out of a linear layer; (0, 0) for other modules."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, torch.Tensor):
        return int(weight.shape[0]), int(weight.shape[1])  # in GPT-2 transposed: (in, out)
    return 0, 0


def is_transposed(module: nn.Module, hidden: int) -> bool | None:
    """Return whether a linear layer or fused experts have their weights as (..., in, out).

    Most fused experts have an attribute for it. For others, the output of the down projection is as
    wide as the residual stream. None if both or neither of its axes are.

    Args:
        module: linear layer or fused experts.
        hidden: channels of the residual stream.
    """
    down = down_projection(module)
    if down is None:
        return type(module).__name__ == "Conv1D"
    stated = getattr(module, "is_transposed", None)
    if stated is not None:
        return bool(stated)
    transposed_by_match = {down.shape[1] == hidden: False, down.shape[2] == hidden: True}
    return transposed_by_match.get(True) if down.shape[1] != down.shape[2] else None
