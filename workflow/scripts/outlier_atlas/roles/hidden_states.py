"""The hidden states among what a module is called with and what it returns.

Tracing, capturing and replacing them use this one definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The hidden states among what a module is called with; None where no tensor stands there."""
    value = kwargs.get("hidden_states", next(iter((*args, *kwargs.values())), None))
    return value if isinstance(value, torch.Tensor) else None


def made(output: Any) -> torch.Tensor | None:
    """The hidden states among what a module returned; None where no tensor stands there."""
    if isinstance(output, list | tuple | Mapping):
        parts = output.values() if isinstance(output, Mapping) else output
        output = next(iter(parts), None)
    return output if isinstance(output, torch.Tensor) else None


def replaced(
    value: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module is called with, with these hidden states in place of its own."""
    if args and "hidden_states" not in kwargs:
        return (value, *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return args, kwargs | {name: value}
