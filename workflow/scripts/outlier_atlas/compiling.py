"""Compilation of loops over numpy arrays by numba, with a cache on disk.

Loops are compiled at their first call. The machine code is cached next to Python's bytecode, or in
the user's cache folder, and rebuilt if the file of the function, numba or the processor changes.
numba does not notice a change in another file, so functions that call each other are in one file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function of numpy arrays, without the interpreter lock.

    Its sums may be evaluated in another order than written, but always in the same one.
    """
    return _compiled(function, fastmath={"reassoc", "contract"})


def compiled_as_written(function: Function) -> Function:
    """Compile a function of numpy arrays in which every operation rounds as in numpy."""
    return _compiled(function)


def _compiled(function: Function, **options: Any) -> Function:
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return cast(Function, njit(cache=True, **options)(function))
    except RuntimeError:  # there is no writable folder for the cache
        return cast(Function, njit(**options)(function))
