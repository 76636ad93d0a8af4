"""Where in a block each site lies."""

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
MLP = re.compile(r"(MLP|Mlp|FeedForward|FFN|MoE|Moe|Moe\w*Block|SparseMoeBlock)$")
OUTPUT_PROJECTIONS = {"o_proj", "out_proj", "c_proj", "dense", "wo"}
ROUTERS = {"gate", "router"}


@dataclass(frozen=True)
class Tap:
    """A place where activations can be taken: a module's input or output, or inside of one.

    Attributes:
        site: what is taken; for losses, what the decoder makes, and the head makes losses of.
        layer: of which layer, 0-based.
        module: path of the module, seen from the decoder; empty for the decoder itself.
        side: its input or its output; of fused experts what `ExpertRecorder.largest` gives; of
            attention what `AttentionCall.received` gives.
        channels: how many are taken of the tensor's last axis; of fused experts to how many of them
            a token is routed; of attention its query heads.
        runs: where they are not all: first channel and the one after the last of each run of them,
            in order.
        experts: of fused experts their number.
        entries: of fused experts the weights in the down projection of one.
    """

    site: Place
    layer: int
    module: str
    side: Literal["input", "output", "experts", "attention"]
    channels: int
    runs: tuple[tuple[int, int], ...] | None = None
    experts: int = 0
    entries: int = 0

    def take(self, tensor: torch.Tensor, batch: int, tokens: int) -> torch.Tensor:
        """The site's tensor (batch, token, channel) from what the module was given or has made.

        Some modules take all tokens of a batch along one axis.
        """
        whole = tensor.reshape(batch, tokens, tensor.shape[-1])
        if self.runs is None:
            return whole
        parts = [whole[..., first:stop] for first, stop in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def positions(self, tensor: torch.Tensor) -> list[int]:
        """Where each of the site's channels lies along the last axis of a module's tensor."""
        return [c for run in self.runs or ((0, tensor.shape[-1]),) for c in range(*run)]

    def altered(self, tensor: torch.Tensor, values: Mapping[int, float]) -> torch.Tensor:
        """A copy of a module's tensor, in which channels of the site have these values throughout.

        Args:
            tensor: what the module was given or has made, channels last.
        """
        own = self.positions(tensor)
        copy = tensor.clone()
        copy[..., [own[channel] for channel in values]] = copy.new_tensor(list(values.values()))
        return copy


def tap_of_decoder(layer: int, channels: int) -> Tap:
    """What the decoder makes behind its last layer, final norm included."""
    return Tap(TOKEN_LOSS, layer, "", "output", channels)


def taps_of_block(
    block: nn.Module,
    flow: BlockFlow | None,
    path: str,
    layer: int,
    hidden: int,
) -> Iterator[Tap]:
    """The taps of a block that can be told for sure, in the order in which it meets them.

    Args:
        flow: what was seen of the block; None where nothing was.
        path: of the block, seen from the decoder.
        hidden: channels of the residual stream.
    """
    found = _Found(block, flow, path, layer)
    yield from filter(found.holds, _taps(found, hidden))


def _taps(found: _Found, hidden: int) -> Iterator[Tap]:
    flow = found.flow
    attention, mlp = found.only(ATTENTION), found.only(MLP)
    yield found.tap("resid_pre", "", "input", hidden)
    if attention:
        yield found.tap("attn_in", attention, "input", hidden)
        if flow:
            yield from _heads(found, flow, attention)
        yield from found.into_projection("attn_hidden", attention, OUTPUT_PROJECTIONS)
        if flow and (heads := flow.attention.get(attention)):
            yield found.tap(ATTN_SINK, attention, "attention", heads)
        if flow and (out := flow.contribution(attention)):
            yield found.tap("attn_out", out, "output", hidden)
    if mlp:
        if flow and (middle := flow.middle(mlp)):
            yield found.tap("resid_mid", middle, "input", hidden)
        yield found.tap("mlp_in", mlp, "input", hidden)
        yield from _router(found, mlp)
        yield from _experts(found, mlp)
        for tap in found.into_projection("mlp_hidden", mlp, DOWN_PROJECTIONS):
            yield tap
            yield replace(tap, site="down_proj_out", side="output", channels=hidden)
        if flow and (out := flow.contribution(mlp)):
            yield found.tap("mlp_out", out, "output", hidden)
    elif flow:
        yield from _mlp_in_the_block(found, flow, hidden)
    yield found.tap("resid_post", "", "output", hidden)


def readers_of_block(flow: BlockFlow, path: str, taps: Mapping[Place, Tap]) -> dict[str, Site]:
    """The modules that are given a site's own tensor, by path seen from the decoder.

    Where attention and the MLP are given the same one, a module reads the site that it is in.
    """
    found: dict[str, Site] = {}
    for site in LINEAR_INPUTS:
        if site not in taps:
            continue
        inside = taps[site].module.removeprefix(f"{path}.")
        whole = flow.calls.get(inside)
        for name, call in flow.calls.items():
            if whole and f"{name}.".startswith(f"{inside}.") and call.given is whole.given:
                found[f"{path}.{name}"] = site
    return found


@dataclass(frozen=True)
class _Found:
    """A block in which roles are looked for."""

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
        runs: tuple[tuple[int, int], ...] | None = None,
    ) -> Tap:
        path = f"{self.path}.{module}" if module else self.path
        return Tap(site, self.layer, path, side, channels, runs)

    def holds(self, tap: Tap) -> bool:
        """Whether the block was seen to have what a tap takes, once and for each token."""
        if self.flow is None or tap.module == self.path:
            return True
        call = self.flow.calls.get(tap.module.removeprefix(f"{self.path}."))
        if call is None or call.given is None or not call.made:
            return False
        shape = call.given_shape if tap.side == "input" else call.made_shape
        whole = tap.runs is not None or tap.side in ("experts", "attention")
        rows, channels = prod(shape[:-1]), shape[-1:]
        return rows == prod(self.flow.shape[:-1]) and (whole or channels == (tap.channels,))

    def only(self, pattern: re.Pattern[str]) -> str | None:
        """The one child whose class has such a name; none where there are several."""
        found = [
            name
            for name, child in self.block.named_children()
            if pattern.search(type(child).__name__)
        ]
        return found[0] if len(found) == 1 else None

    def named(self, module: str, names: set[str]) -> list[tuple[str, nn.Module]]:
        """The modules within a module that have one of these names, with their paths."""
        inside = self.block.get_submodule(module)
        return [
            (f"{module}.{path}", child)
            for path, child in inside.named_modules()
            if path.rpartition(".")[2] in names
        ]

    def into_projection(self, site: Site, module: str, names: set[str]) -> Iterator[Tap]:
        """The input of the projection whose output is the module's, where there is such a one.

        The output of a shared expert is only a part of the module's.
        """
        whole = self.flow.calls.get(module) if self.flow else None
        if self.flow is None or whole is None or not whole.made:
            return
        for path, child in self.named(module, names):
            call, channels = self.flow.calls.get(path), width(child)[0]
            if channels and call and call.made and call.made[0] is whole.made[0]:
                yield self.tap(site, path, "input", channels)
                return


def _heads(found: _Found, flow: BlockFlow, attention: str) -> Iterator[Tap]:
    """Queries, keys and values, in the order in which their projections are called."""
    order = list(flow.calls)
    for site, part in sorted(flow.heads.items(), key=lambda item: order.index(item[1].module)):
        if part.module.startswith(f"{attention}."):
            yield found.tap(site, part.module, "output", part.channels, part.runs)


def _router(found: _Found, mlp: str) -> Iterator[Tap]:
    """What the router makes first, if it is a matrix product: scores before any softmax."""
    for path, module in found.named(mlp, ROUTERS):
        weight = getattr(module, "weight", None)
        call = found.flow.calls.get(path) if found.flow else None
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not call:
            continue
        experts = int(weight.shape[0])
        if call.made and call.made[0].is_product and call.made[0].shape[-1] == experts > 1:
            yield found.tap("router_logits", path, "output", experts)
            return


def _experts(found: _Found, mlp: str) -> Iterator[Tap]:
    """The routed experts, where they are fused and their computation can be followed."""
    inside = found.block.get_submodule(mlp)
    fused = [name for name, child in inside.named_children() if down_projection(child) is not None]
    if len(fused) != 1 or found.flow is None:
        return
    experts, call = inside.get_submodule(fused[0]), found.flow.calls.get(f"{mlp}.{fused[0]}")
    routed, down = call and routed_experts(experts, call), down_projection(experts)
    if routed and down is not None:
        path = f"{found.path}.{mlp}.{fused[0]}"
        entries = down[0].numel()
        yield Tap(EXPERT_OUT, found.layer, path, "experts", routed, None, len(down), entries)


def _mlp_in_the_block(found: _Found, flow: BlockFlow, hidden: int) -> Iterator[Tap]:
    """An MLP without a module of its own: two linear layers of the block, one adding its output."""
    linear = {name: width(child) for name, child in found.block.named_children() if width(child)[0]}
    down = [name for name in linear if flow.contribution(name) == name]
    up = [name for name in linear if name not in down]
    if len(down) != 1 or len(up) != 1 or linear[up[0]][1] != linear[down[0]][0]:
        return
    if middle := flow.middle(up[0]):
        yield found.tap("resid_mid", middle, "input", hidden)
    yield found.tap("mlp_in", up[0], "input", hidden)
    yield found.tap("mlp_hidden", down[0], "input", linear[down[0]][0])
    yield found.tap("down_proj_out", down[0], "output", hidden)
    yield found.tap("mlp_out", down[0], "output", hidden)


def width(module: nn.Module) -> tuple[int, int]:
    """Channels into and out of a linear layer; (0, 0) for anything else."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, torch.Tensor):
        return int(weight.shape[0]), int(weight.shape[1])  # GPT-2's, transposed: (in, out)
    return 0, 0


def is_transposed(module: nn.Module, hidden: int) -> bool | None:
    """Whether the weights of a linear layer or of fused experts lie (..., in, out).

    Most experts say so; of the others the down projection does, whose output is as wide as the
    residual stream. None where it cannot be told.
    """
    down = down_projection(module)
    if down is None:
        return type(module).__name__ == "Conv1D"
    said = getattr(module, "is_transposed", None)
    if said is not None:
        return bool(said)
    ways = {down.shape[1] == hidden: False, down.shape[2] == hidden: True}
    return ways.get(True) if down.shape[1] != down.shape[2] else None
