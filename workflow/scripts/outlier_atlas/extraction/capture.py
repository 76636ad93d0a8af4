"""One forward pass through a layer group, with the sites taken on the way.

nnsight reads the source of a traced block, so this lives in a module and not in a script.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from nnsight import NNsight
from torch import nn

from outlier_atlas.model.architecture import Architecture
from outlier_atlas.model.roles import Tap

Keep = Callable[[Tap, torch.Tensor], None]
"""Takes the tensor (batch, token, channel) of a tap; it may be overwritten after the call."""


class LayerGroup:
    """A partially loaded model that runs its own layers only.

    Args:
        model: the decoder, with the weights of `layers`.
        architecture: of the whole model.
        layers: those that it runs.
        taps: what is taken from them, in the order of `Architecture.taps`.
    """

    def __init__(
        self, model: nn.Module, architecture: Architecture, layers: range, taps: Sequence[Tap]
    ) -> None:
        self._model = NNsight(model)
        self._parameter = next(model.parameters())
        self._boundary_dtype = architecture.boundary_dtypes[layers[0]] or self._parameter.dtype
        self._first = self._envoy(f"{architecture.stack}.{layers[0]}")
        self._taps = [(tap, self._envoy(tap.module)) for tap in taps]

    @torch.inference_mode()
    def run(self, batch: torch.Tensor, keep: Keep) -> None:
        """Run the layers over a batch and hand each tap's tensor to `keep` as it is made.

        Args:
            batch: token ids (batch, token) where the layers begin with layer 0; otherwise the
                residual stream at the boundary before them, (batch, token, channel).
            keep: called in the order of the taps, from within the forward pass.
        """
        batch = batch.to(self._parameter.device)
        boundary = batch.to(self._boundary_dtype) if batch.is_floating_point() else None
        # The dummy gives the model the shapes that it makes masks and positions from.
        size, tokens = batch.shape[:2]
        inputs: dict[str, Any] = (
            {"input_ids": batch}
            if boundary is None
            else {"inputs_embeds": torch.zeros_like(boundary, dtype=self._parameter.dtype)}
        )
        with self._model.trace(**inputs, use_cache=False) as tracer:
            if boundary is not None:
                self._first.input = boundary
            for tap, envoy in self._taps:
                taken = _given(envoy.inputs) if tap.side == "input" else _made(envoy.output)
                keep(tap, tap.take(taken, size, tokens))
            tracer.stop()

    def _envoy(self, path: str) -> Any:
        return reduce(
            lambda envoy, name: envoy[int(name)] if name.isdigit() else getattr(envoy, name),
            path.split("."),
            self._model,
        )


def _given(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> torch.Tensor:
    """The hidden states among what a module was called with."""
    args, kwargs = inputs
    value = kwargs["hidden_states"] if "hidden_states" in kwargs else (*args, *kwargs.values())[0]
    assert isinstance(value, torch.Tensor)
    return value


def _made(output: Any) -> torch.Tensor:
    """The hidden states among what a module returned."""
    value = output[0] if isinstance(output, tuple) else output
    assert isinstance(value, torch.Tensor)
    return value
