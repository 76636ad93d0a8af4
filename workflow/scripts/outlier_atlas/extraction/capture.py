"""One forward pass through a layer group, with the sites taken on the way.

nnsight reads the source of a traced block, so this lives in a module and not in a script.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial, reduce
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from nnsight import NNsight
from torch import nn
from torch.utils.hooks import RemovableHandle

from outlier_atlas.roles import hidden_states
from outlier_atlas.roles.architecture import Architecture
from outlier_atlas.roles.attention import RecordedAttention
from outlier_atlas.roles.block_sites import Tap
from outlier_atlas.roles.experts import RecordedExperts
from outlier_atlas.roles.lm_head import Head
from outlier_atlas.roles.partial_decoder import dummy
from outlier_atlas.roles.state import InitialState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Keep = Callable[[Tap, torch.Tensor], None]
"""Takes the tensor (batch, token, channel) of a tap; it may be overwritten after the call."""

Alter = Callable[[torch.Tensor], torch.Tensor]
"""Makes an altered copy of what a module is given or has made, channels last."""


class LayerGroup:
    """A partially loaded model that runs its own layers only.

    Args:
        model: the decoder, with the weights of `layers`.
        architecture: of the whole model.
        layers: those that it runs.
        taps: what is taken from them, in the order of `Architecture.taps`; that of the decoder
            last.
        sink_tokens: of how many first tokens `attn_sink` is taken.
        head: what makes losses of what the decoder makes, where they are wanted.

    Attributes:
        model, head: as they were given.
        boundary_dtype: of the residual stream into the first layer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        layers: range,
        taps: Sequence[Tap],
        sink_tokens: int = 0,
        head: Head | None = None,
    ) -> None:
        self.model, self.head = model, head
        self._recorders = {
            tap: _recorder(model, tap, sink_tokens)
            for tap in taps
            if tap.side in ("experts", "attention")
        }
        self._traced = NNsight(model)
        self._parameter = next(model.parameters())
        self._dtype = model.config.dtype  # a weight may be kept in another one
        self.boundary_dtype = architecture.boundary_dtypes[layers[0]] or self._dtype
        self._embedding_size = architecture.embedding_size
        self._first_path = f"{architecture.stack}.{layers[0]}"
        self._first = self._envoy(self._first_path)
        self._taps = [(tap, self._envoy(tap.module)) for tap in taps]
        self._initial = InitialState(model)

    @property
    def modules(self) -> list[nn.Module]:
        """All that has weights: the decoder, and the head where there is one."""
        return [self.model] if self.head is None else [self.model, self.head.model]

    @torch.inference_mode()
    def run(self, batch: torch.Tensor, keep: Keep) -> None:
        """Run the layers over a batch and hand each tap's tensor to `keep` as it is made.

        Args:
            batch: token ids (batch, token) where the layers begin with layer 0; otherwise the
                residual stream at the boundary before them, (batch, token, channel).
            keep: called in the order of the taps, from within the forward pass.
        """
        inputs, boundary = self._inputs(batch)
        size, tokens = batch.shape[:2]
        with self._traced.trace(**inputs, use_cache=False) as tracer:
            if boundary is not None:
                self._first.input = boundary
            for tap, envoy in self._taps:
                taken = _given(envoy.inputs) if tap.side == "input" else _made(envoy.output)
                keep(tap, tap.take(self._recorded(tap, taken), size, tokens))
            tracer.stop()

    @torch.inference_mode()
    def run_directly(
        self,
        batch: torch.Tensor,
        keep: Keep,
        altered: Mapping[Tap, Alter] = MappingProxyType({}),
    ) -> None:
        """The same as `run`, with plain hooks: the reference of a traced forward pass.

        Args:
            altered: what makes another tensor of a tap's module's, before the model goes on, and
                before `keep` sees it.
        """
        inputs, boundary = self._inputs(batch)
        size, tokens = batch.shape[:2]
        with ExitStack() as hooks:
            if boundary is not None:
                first = self.model.get_submodule(self._first_path)
                hooked = first.register_forward_pre_hook(
                    partial(_replace_given, boundary), with_kwargs=True
                )
                hooks.callback(hooked.remove)
            for tap, alter in altered.items():
                module = self.model.get_submodule(tap.module)
                hooks.callback(_hook_alteration(module, tap, alter).remove)
            for tap, _ in self._taps:
                module = self.model.get_submodule(tap.module)
                hooks.callback(self._hook(module, tap, size, tokens, keep).remove)
            self.model(**inputs, use_cache=False)

    def _inputs(self, batch: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor | None]:
        """What the model is called with, and the boundary that replaces its hidden states.

        The model is as it was loaded: nothing is left of the sequences before.
        """
        self._initial.restore()
        batch = batch.to(self._parameter.device)
        if not batch.is_floating_point():
            return {"input_ids": batch}, None
        boundary = batch.to(self.boundary_dtype)
        return {"inputs_embeds": dummy(boundary, self._embedding_size, self._dtype)}, boundary

    def _recorded(self, tap: Tap, taken: torch.Tensor) -> torch.Tensor:
        """What was taken; where it is a recorded module's output, what was recorded inside it."""
        return self._recorders[tap].take() if tap in self._recorders else taken

    def _hook(
        self, module: nn.Module, tap: Tap, size: int, tokens: int, keep: Keep
    ) -> RemovableHandle:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(tap, tap.take(_given((args, kwargs)), size, tokens))

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            keep(tap, tap.take(self._recorded(tap, _made(output)), size, tokens))

        if tap.side == "input":
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    def _envoy(self, path: str) -> Any:
        return reduce(
            lambda envoy, name: envoy[int(name)] if name.isdigit() else getattr(envoy, name),
            path.split(".") if path else [],
            self._traced,
        )


def _recorder(model: nn.Module, tap: Tap, sink_tokens: int) -> RecordedExperts | RecordedAttention:
    module = model.get_submodule(tap.module)
    if tap.side == "experts":
        return RecordedExperts(module, tap.module)
    return RecordedAttention(module, tap.module, sink_tokens)


def _given(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> torch.Tensor:
    """The hidden states among what a module was called with."""
    value = hidden_states.given(*inputs)
    assert value is not None
    return value


def _made(output: Any) -> torch.Tensor:
    """The hidden states among what a module returned."""
    value = hidden_states.made(output)
    assert value is not None
    return value


def _replace_given(
    boundary: torch.Tensor, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hand a block the boundary in place of the hidden states that it was called with."""
    return hidden_states.replaced(boundary, args, kwargs)


def _hook_alteration(module: nn.Module, tap: Tap, alter: Alter) -> RemovableHandle:
    """Alter what a module is called with, or of what it returns."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _replace_given(alter(_given((args, kwargs))), _, args, kwargs)

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        made = alter(_made(output))
        return made if isinstance(output, torch.Tensor) else (made, *output[1:])

    if tap.side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)
