"""Time of imports inside a job, which no public hook of Python surrounds.

`sys.meta_path` sees where a module is looked for and not where its import ends. The interpreter
calls `importlib._bootstrap._find_and_load` for each module that is not imported yet, in all of its
versions since 3.3.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from outlier_atlas.phases import CLOCK, IMPORT, phase

_bootstrap: Any = importlib._bootstrap


def count_imports() -> None:
    """Count imports in the main thread of this process to the phase `import`, once."""
    plain: Callable[..., ModuleType] = _bootstrap._find_and_load
    if getattr(plain, "counts", False):
        return

    def counting(name: str, *rest: Any) -> ModuleType:
        if CLOCK.current() == IMPORT or not CLOCK.is_main():
            return plain(name, *rest)
        with phase(IMPORT):
            return plain(name, *rest)

    counting.counts = True  # type: ignore[attr-defined]
    _bootstrap._find_and_load = counting
