"""Sizes and times in the units that suit them; sizes as the configuration gives them."""

from __future__ import annotations

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def bytes_of(text: str) -> int:
    """Return the bytes of a size as the configuration gives it: `24GiB`."""
    return int(float(text[:-3]) * UNITS[text[-3:]])


def shown(size: int) -> str:
    """Return a number of bytes in the unit that suits it: `57.1 GiB`."""
    for unit in ("TiB", "GiB", "MiB"):
        if size >= UNITS[unit]:
            number = size / UNITS[unit]
            return f"{number:.{1 if number >= 10 else 2}f} {unit}"
    return f"{size / UNITS['KiB']:.1f} KiB"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
