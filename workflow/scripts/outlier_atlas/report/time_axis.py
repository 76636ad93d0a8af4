"""Axis of time that leaves out the time in which no job ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log10

from outlier_atlas.job_times import JobTimes
from outlier_atlas.report.critical_path import LONGEST_GAP

TICKS = 8
"""Maximum number of labels."""


@dataclass(frozen=True)
class Axis:
    """An axis of time in pixels.

    Attributes:
        spans: start and end of each span in which jobs ran, in seconds since 1970.
        width: width of the axis.
    """

    spans: Sequence[tuple[float, float]]
    width: float

    @classmethod
    def of(cls, jobs: Sequence[JobTimes], width: float) -> Axis:
        """Return the axis of some jobs."""
        spans: list[tuple[float, float]] = []
        for times in sorted(jobs, key=lambda times: times.started):
            if spans and times.started <= spans[-1][1] + LONGEST_GAP:
                spans[-1] = spans[-1][0], max(spans[-1][1], times.ended)
            else:
                spans.append((times.started, times.ended))
        return cls(spans, width)

    @property
    def seconds(self) -> float:
        """Seconds of all spans."""
        return sum(end - start for start, end in self.spans)

    def elapsed(self, time: float) -> float:
        """Return the seconds of the spans before a time."""
        return sum(max(0.0, min(time, end) - start) for start, end in self.spans)

    def place(self, time: float) -> float:
        """Return the place of a time, in pixels."""
        return self.width * self.elapsed(time) / max(self.seconds, 1e-9)

    def cuts(self) -> list[tuple[float, float]]:
        """Return the place of each left-out time, and its seconds."""
        ends = zip(self.spans[:-1], self.spans[1:], strict=True)
        return [(self.place(before[1]), after[0] - before[1]) for before, after in ends]

    def ticks(self) -> list[tuple[float, str]]:
        """Return places and texts of labels, at round numbers of seconds, minutes or hours."""
        step = _round(max(self.seconds, 1e-3) / TICKS)
        number = int(self.seconds / step)
        return [
            (self.width * index * step / max(self.seconds, 1e-9), _label(index * step, step))
            for index in range(number + 1)
        ]


def _round(least: float) -> float:
    """Return the smallest round number of seconds that is not smaller."""
    steps = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600, 43200)
    if least > steps[-1]:
        return 86400.0 * ceil(least / 86400)
    if least <= 1:
        power = 10.0 ** ceil(log10(least))
        return power / 5 if power / 5 >= least else power / 2 if power / 2 >= least else power
    return float(next(step for step in steps if step >= least))


def _label(seconds: float, step: float) -> str:
    """Return a number of seconds in the unit of the distance between labels."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if step % unit == 0:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:g} s" if step >= 1 else f"{seconds:.4g} s"
