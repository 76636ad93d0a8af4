"""Paired measurements: two things timed in turn, and the ratio of each pair.

Machines differ and swing within minutes. The two sides of a pair run one directly after the other,
in alternating order, and the median of the pairs' ratios is compared with a goal.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Side = Callable[[], float | None]
"""Runs once; returns its seconds, or None to have the whole call timed."""


class Ratio(NamedTuple):
    """The ratios of the pairs of a measurement, and the seconds of both sides."""

    name: str
    goal: float | None
    ratios: list[float]
    ours: list[float]
    others: list[float]

    @property
    def median(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    def line(self) -> str:
        """Return one line: name, goal, median, range, seconds of both sides."""
        goal = "no goal" if self.goal is None else f"goal {self.goal:.2f}"
        met = "" if self.goal is None else "met" if self.median <= self.goal else "MISSED"
        return (
            f"{self.name:<58} {goal:>9}  measured {self.median:6.3f} "
            f"({min(self.ratios):.3f} to {max(self.ratios):.3f}) {met:<6}  "
            f"{_range(self.ours)} over {_range(self.others)}, {len(self.ratios)} pairs"
        )


def measure(
    name: str, ours: Side, other: Side, *, goal: float | None = None, pairs: int = 10
) -> Ratio:
    """Time two sides in turn, and print the line of the ratio `ours / other`.

    Args:
        name: what is measured against what.
        ours: the side of the project.
        other: what it is compared with. Both have run before if a first run takes longer.
        goal: the ratio that is aimed at; a lower ratio is better.
        pairs: number of pairs.
    """
    result = Ratio(name, goal, [], [], [])
    for pair in range(pairs):
        order = [(ours, result.ours), (other, result.others)]
        for side, seconds in order if pair % 2 else reversed(order):
            seconds.append(_timed(side))
        result.ratios.append(result.ours[-1] / result.others[-1])
        if sys.stderr.isatty():
            print(
                f"\r{name}: pair {pair + 1}, {result.ratios[-1]:.3f}\033[K", end="", file=sys.stderr
            )
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print(result.line(), flush=True)
    return result


def fast_dtype() -> str:
    """Return bfloat16 if the CPU has instructions for it, and otherwise float32.

    A CPU without them computes bfloat16 so slowly that the forward pass hides everything else.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return "float32"
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def _timed(side: Side) -> float:
    started = time.perf_counter()
    seconds = side()
    return time.perf_counter() - started if seconds is None else seconds


def _range(seconds: list[float]) -> str:
    least, most = min(seconds), max(seconds)
    digits = 3 if most < 1 else 2 if most < 10 else 1
    return f"{least:.{digits}f} to {most:.{digits}f} s"
