"""State that a model keeps between forward passes, and its reset before each of them.

Some models change themselves when they run: dynamic RoPE keeps the frequencies of the longest
sequence so far, and other models keep position offsets. With such state, the values of a sequence
would depend on the sequences before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from outlier_atlas.compat.torch_internals import own_buffers

COPIED_BYTES = 2**16
"""Bytes of the largest buffer that is copied because its values may change in place.

Frequencies are far smaller. Larger buffers are tables that no forward pass writes to.
"""

INTERNAL = frozenset(vars(nn.Module()))
"""Names of the attributes that every module has."""


class InitialState:
    """State of a model's modules before its first forward pass.

    Args:
        model: model with its weights, on its devices.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [
            (module, _attributes(module), dict(own_buffers(module))) for module in model.modules()
        ]
        self._copies = [
            (buffer, buffer.clone())
            for _, _, buffers in self._modules
            for buffer in buffers.values()
            if buffer is not None and buffer.numel() * buffer.element_size() <= COPIED_BYTES
        ]

    def restore(self) -> None:
        """Restore the attributes, buffers and buffer values of every module."""
        for module, attributes, buffers in self._modules:
            for name in _attributes(module).keys() - attributes.keys():
                delattr(module, name)
            for name, value in attributes.items():
                vars(module)[name] = value
            own_buffers(module).clear()
            own_buffers(module).update(buffers)
        for buffer, values in self._copies:
            buffer.copy_(values)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that torch does not define."""
    return {name: value for name, value in vars(module).items() if name not in INTERNAL}


@contextmanager
def fixed_rotation(model: nn.Module) -> Iterator[None]:
    """Replace dynamic RoPE in the block, as the sequence length has no value on the meta device.

    Shapes and operations on hidden states stay the same.
    """
    changed = [
        (module, kind)
        for module in model.modules()
        if (kind := getattr(module, "rope_type", None)) is not None and "dynamic" in str(kind)
    ]
    for module, kind in changed:
        fixed: Any = "default"
        if isinstance(kind, Mapping):
            fixed = {k: "default" if "dynamic" in str(v) else v for k, v in kind.items()}
        module.rope_type = fixed
    try:
        yield
    finally:
        for module, kind in changed:
            module.rope_type = kind
