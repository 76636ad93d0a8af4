"""Forward pass through a layer group that takes the sites on the way.

nnsight reads the source of a traced block, so this code is in a module and not in a script.
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
from outlier_atlas.roles.partial_decoder import placeholder_embeddings
from outlier_atlas.roles.state import InitialState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Keep = Callable[[Tap, torch.Tensor], None]
"""Callback that gets the tensor (batch, token, channel) of a tap.

The tensor may be overwritten after the call.
"""

Alter = Callable[[torch.Tensor], torch.Tensor]
"""Function that returns an altered copy of a module's input or output, channels last."""


class LayerGroup:
    """Partially loaded model that runs only its own layers.

    Args:
        model: decoder with the weights of `layers`.
        architecture: architecture of the whole model.
        layers: layers that it runs.
        taps: taps to take, in the order of `Architecture.taps`; the tap of the decoder is last.
        sink_tokens: number of first tokens for which `attn_sink` is taken.
        head: head that computes losses from the decoder's output; None without losses.

    Attributes:
        model: the decoder.
        head: the head, or None.
        boundary_dtype: dtype of the residual stream into the first layer.
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
        self._dtype = model.config.dtype  # some weights may have another dtype
        self.boundary_dtype = architecture.boundary_dtypes[layers[0]] or self._dtype
        self._embedding_size = architecture.embedding_size
        self._first_path = f"{architecture.stack}.{layers[0]}"
        self._first = self._envoy(self._first_path)
        self._taps = [(tap, self._envoy(tap.module)) for tap in taps]
        self._initial = InitialState(model)

    @property
    def modules(self) -> list[nn.Module]:
        """Modules with weights: the decoder, and the head if there is one."""
        return [self.model] if self.head is None else [self.model, self.head.model]

    @torch.inference_mode()
    def run(self, batch: torch.Tensor, keep: Keep) -> None:
        """Run the layers on a batch, and pass the tensor of each tap to `keep` once it is computed.

        Args:
            batch: token ids (batch, token) if the layers begin with layer 0; otherwise the residual
                stream at the boundary before them, (batch, token, channel).
            keep: callback, called in the order of the taps during the forward pass.
        """
        inputs, boundary = self._inputs(batch)
        size, tokens = batch.shape[:2]
        with self._traced.trace(**inputs, use_cache=False) as tracer:
            if boundary is not None:
                self._first.input = boundary
            for tap, envoy in self._taps:
                tensor = (
                    _hidden_input(envoy.inputs)
                    if tap.side == "input"
                    else _hidden_output(envoy.output)
                )
                keep(tap, tap.take(self._recorded(tap, tensor), size, tokens))
            tracer.stop()

    @torch.inference_mode()
    def run_directly(
        self,
        batch: torch.Tensor,
        keep: Keep,
        altered: Mapping[Tap, Alter] = MappingProxyType({}),
    ) -> None:
        """Run the layers with plain hooks, as a reference for the traced forward pass of `run`.

        Args:
            batch: see `run`.
            keep: see `run`.
            altered: for some taps, a function that replaces the tensor of the tap's module before
                the model continues and before `keep` gets it.
        """
        inputs, boundary = self._inputs(batch)
        size, tokens = batch.shape[:2]
        with ExitStack() as hooks:
            if boundary is not None:
                first = self.model.get_submodule(self._first_path)
                hook = first.register_forward_pre_hook(
                    partial(_replace_input, boundary), with_kwargs=True
                )
                hooks.callback(hook.remove)
            for tap, alter in altered.items():
                module = self.model.get_submodule(tap.module)
                hooks.callback(_hook_alteration(module, tap, alter).remove)
            for tap, _ in self._taps:
                module = self.model.get_submodule(tap.module)
                hooks.callback(self._hook(module, tap, size, tokens, keep).remove)
            self.model(**inputs, use_cache=False)

    def _inputs(self, batch: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor | None]:
        """Return the arguments of the model, and the boundary that replaces its hidden states.

        The state of the model is reset, so that nothing remains of earlier sequences.
        """
        self._initial.restore()
        batch = batch.to(self._parameter.device)
        if not batch.is_floating_point():
            return {"input_ids": batch}, None
        boundary = batch.to(self.boundary_dtype)
        embeddings = placeholder_embeddings(boundary, self._embedding_size, self._dtype)
        return {"inputs_embeds": embeddings}, boundary

    def _recorded(self, tap: Tap, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor of a tap: the recorded one for taps inside a module."""
        return self._recorders[tap].take() if tap in self._recorders else tensor

    def _hook(
        self, module: nn.Module, tap: Tap, size: int, tokens: int, keep: Keep
    ) -> RemovableHandle:
        """Register a hook that passes the tensor of a tap to `keep`."""

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(tap, tap.take(_hidden_input((args, kwargs)), size, tokens))

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            keep(tap, tap.take(self._recorded(tap, _hidden_output(output)), size, tokens))

        if tap.side == "input":
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    def _envoy(self, path: str) -> Any:
        """Return the nnsight envoy of a module."""
        return reduce(
            lambda envoy, name: envoy[int(name)] if name.isdigit() else getattr(envoy, name),
            path.split(".") if path else [],
            self._traced,
        )


def _recorder(model: nn.Module, tap: Tap, sink_tokens: int) -> RecordedExperts | RecordedAttention:
    """Return the recorder of a tap inside a module, which replaces the module's forward."""
    module = model.get_submodule(tap.module)
    if tap.side == "experts":
        return RecordedExperts(module, tap.module)
    return RecordedAttention(module, tap.module, sink_tokens)


def _hidden_input(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> torch.Tensor:
    """Return the hidden states among the arguments of a module."""
    hidden = hidden_states.from_arguments(*inputs)
    assert hidden is not None
    return hidden


def _hidden_output(output: Any) -> torch.Tensor:
    """Return the hidden states among the results of a module."""
    hidden = hidden_states.from_output(output)
    assert hidden is not None
    return hidden


def _replace_input(
    boundary: torch.Tensor, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a block with the boundary in place of its hidden states."""
    return hidden_states.replace_argument(boundary, args, kwargs)


def _hook_alteration(module: nn.Module, tap: Tap, alter: Alter) -> RemovableHandle:
    """Register a hook that alters the input or the output of a tap's module."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _replace_input(alter(_hidden_input((args, kwargs))), _, args, kwargs)

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = alter(_hidden_output(output))
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    if tap.side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)
