"""Names of torch that are not public, each with the reason why it is used.

`tests/test_compat.py` fails at an upgrade that changes one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# The only way to see every operator of a forward pass with its arguments and results.
from torch.utils._python_dispatch import TorchDispatchMode

# The containers in which modules take and return tensors, as torch's own hooks know them.
from torch.utils._pytree import tree_map_only

__all__ = ["TorchDispatchMode", "tree_map_only"]


def storage_id(tensor: torch.Tensor) -> int:
    """Return a number that tensors share if and only if they share a storage.

    On the meta device `data_ptr()`, the public way, is 0 for every tensor.
    """
    return int(tensor.untyped_storage()._cdata)


def own_buffers(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the buffers of a module itself, by name, as they can be replaced.

    `named_buffers()` leaves out buffers that are None, and buffers that another module has, too.
    """
    return module._buffers


def apply_to_own_tensors(
    module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Replace the parameters and buffers of a module itself; `Module.to` includes its children."""
    module._apply(function, recurse=False)  # type: ignore[no-untyped-call]


@contextmanager
def only_children(module: nn.Module, wanted: Callable[[nn.Module | None], bool]) -> Iterator[None]:
    """Hide children of a module for the block; the names of the others stay as they are.

    To delete them from a `ModuleList` would number the others from 0.
    """
    every = module._modules
    module._modules = {name: child for name, child in every.items() if wanted(child)}
    try:
        yield
    finally:
        module._modules = every


def operator_name(operator: Any) -> str:
    """Return the name of an operator without its namespace and overload: `transpose`."""
    return str(operator._schema.name).rpartition("::")[2]


def is_in_place(operator: Any) -> bool:
    """Return whether an operator changes one of its arguments; its schema alone says so."""
    return bool(operator._schema.is_mutable)
