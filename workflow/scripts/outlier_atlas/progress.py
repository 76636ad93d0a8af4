"""Progress bars that suit where they are shown."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress(total: int, unit: str, description: str) -> tqdm[Any]:
    """A bar on the terminal; in a log file, a line now and then."""
    return tqdm(
        total=total,
        unit=unit,
        unit_scale=unit == " tokens",
        desc=description,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        dynamic_ncols=sys.stderr.isatty(),
    )
