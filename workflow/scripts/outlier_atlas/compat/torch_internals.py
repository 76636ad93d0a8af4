"""Private names of torch, each with the reason for its use.

`tests/test_compat.py` fails at an upgrade that changes one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# There is no public way to observe each operator of a forward pass with arguments and results.
from torch.utils._python_dispatch import TorchDispatchMode

# The containers of tensors that torch's own hooks support.
from torch.utils._pytree import tree_map_only

__all__ = ["TorchDispatchMode", "tree_map_only"]


def storage_id(tensor: torch.Tensor) -> int:
    """Return a number that is equal for two tensors if and only if they share a storage.

    The public `data_ptr()` is 0 for every tensor on the meta device.
    """
    return int(tensor.untyped_storage()._cdata)


def own_buffers(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the buffers of a module, without its submodules, as a dictionary that can be modified.

    The public `named_buffers()` leaves out buffers that are None or shared with another module.
    """
    return module._buffers


def apply_to_own_tensors(
    module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Replace the parameters and buffers of a module, without its submodules.

    The public `Module.to` includes submodules.
    """
    module._apply(function, recurse=False)  # type: ignore[no-untyped-call]


@contextmanager
def only_children(
    module: nn.Module, is_visible: Callable[[nn.Module | None], bool]
) -> Iterator[None]:
    """Hide children of a module in the block; the remaining children keep their names.

    Deleting children from a `ModuleList` would renumber the remaining ones.

    Args:
        module: the module.
        is_visible: whether a child stays visible.
    """
    children = module._modules
    module._modules = {name: child for name, child in children.items() if is_visible(child)}
    try:
        yield
    finally:
        module._modules = children


def operator_name(operator: Any) -> str:
    """Return the name of an operator without its namespace and overload: `transpose`."""
    return str(operator._schema.name).rpartition("::")[2]


def is_in_place(operator: Any) -> bool:
    """Return whether an operator modifies one of its arguments; only its schema states this."""
    return bool(operator._schema.is_mutable)
