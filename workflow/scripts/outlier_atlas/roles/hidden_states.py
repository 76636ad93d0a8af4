"""Hidden states among the arguments and the results of a module.

Tracing, capturing and replacing hidden states use these definitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def from_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the hidden states among the arguments of a module; None if they are no tensor."""
    value = kwargs.get("hidden_states", next(iter((*args, *kwargs.values())), None))
    return value if isinstance(value, torch.Tensor) else None


def from_output(output: Any) -> torch.Tensor | None:
    """Return the hidden states among the results of a module; None if they are no tensor."""
    if isinstance(output, list | tuple | Mapping):
        parts = output.values() if isinstance(output, Mapping) else output
        output = next(iter(parts), None)
    return output if isinstance(output, torch.Tensor) else None


def replace_argument(
    hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a module with other hidden states."""
    if args and "hidden_states" not in kwargs:
        return (hidden, *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return args, kwargs | {name: hidden}
