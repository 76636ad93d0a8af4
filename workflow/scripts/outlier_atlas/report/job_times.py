"""Section "Where time goes": bars of the jobs on a common axis, their table and critical path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from outlier_atlas.job_times import JobTimes
from outlier_atlas.phases import PHASES
from outlier_atlas.report.critical_path import before, critical_path
from outlier_atlas.report.time_axis import Axis
from outlier_atlas.sanitize import visible
from outlier_atlas.tables.job_times import JOB_TIMES, MEANINGS
from outlier_atlas.text import count
from outlier_atlas.units import duration

Row = dict[str, Any]

MOST_ROWS = 40
"""Maximum number of bars; with more jobs, jobs of a layer group or of a rule share one."""

PART = re.compile(r"\.group-(\d+)-of-\d+\.shard-(\d+)-of-\d+$")
"""End of the name of an extraction job: layer group and sequence shard."""

LEFT, WIDTH, ROW, TOP = 300, 960, 22, 26
"""Width of the labels, of the picture, and height of a row and of the axis, in pixels."""


@dataclass(frozen=True)
class Bar:
    """A bar of the picture, of one job or of several.

    Attributes:
        label: name of the jobs.
        jobs: the jobs.
        critical: whether one of them is on the critical path.
    """

    label: str
    jobs: Sequence[JobTimes]
    critical: bool

    @property
    def start(self) -> float:
        """Start of the first job, in seconds since 1970."""
        return min(times.started for times in self.jobs)

    @property
    def end(self) -> float:
        """End of the last job."""
        return max(times.ended for times in self.jobs)

    def seconds(self, phase: str) -> float:
        """Seconds of all jobs in a phase."""
        return sum(times.main[phase] for times in self.jobs)


def columns(jobs: Sequence[JobTimes]) -> dict[str, list[Any]]:
    """Return the columns of the table `job_times`."""
    chosen = before(jobs)
    critical = {times.job for times in critical_path(jobs, chosen)}
    first = min((times.started for times in jobs), default=0.0)
    rows = [
        _row(times, first) | {"after": chosen[times.job], "on_critical_path": times.job in critical}
        for times in jobs
    ]
    return {column.name: [row[column.name] for row in rows] for column in JOB_TIMES.columns}


def _row(times: JobTimes, first: float) -> Row:
    facts = times.facts
    layers = facts.get("layers", (None, None))
    started = datetime.fromtimestamp(times.started, UTC)
    return {
        "rule": times.rule,
        "job": times.job,
        "started": started.isoformat(timespec="milliseconds"),
        "start_seconds": times.started - first,
        "wall_seconds": times.wall,
        "cpu_seconds": times.cpu,
        "predicted_seconds": facts.get("predicted"),
        "tokens": facts.get("tokens"),
        "first_layer": layers[0],
        "last_layer": layers[1],
        "device": facts.get("device"),
        "dtype": facts.get("dtype"),
        "cores": times.cores,
        "machine": times.machine,
        "bytes_read": times.bytes_read,
        "bytes_written": times.bytes_written,
        **{f"{name}_seconds": seconds for name, seconds in times.main.items()},
        **{f"threads_{name}_seconds": seconds for name, seconds in times.threads.items()},
    }


def section(jobs: Sequence[JobTimes]) -> Row | None:
    """Return what the page shows of the jobs' times; None if no times are known."""
    if not jobs:
        return None
    path = critical_path(jobs, before(jobs))
    bars = _bars(jobs, {times.job for times in path})
    axis = Axis.of(jobs, WIDTH - LEFT)
    return {
        "sentence": _sentence(jobs, path, axis),
        "grouped": len(bars) < len(jobs),
        "jobs": count(len(jobs), "job"),
        "phases": [(name, MEANINGS[name].partition(":")[0]) for name in PHASES],
        "width": WIDTH,
        "height": TOP + ROW * len(bars) + 8,
        "left": LEFT,
        "top": TOP,
        "ticks": [(LEFT + x, text) for x, text in axis.ticks()],
        "cuts": [(LEFT + x, f"{duration(seconds)} without a job") for x, seconds in axis.cuts()],
        "bars": [_drawn(bar, index, axis) for index, bar in enumerate(bars)],
        "rows": [_shown(bar, axis) for bar in bars],
    }


def _sentence(jobs: Sequence[JobTimes], path: Sequence[JobTimes], axis: Axis) -> str:
    seconds = sum(times.wall for times in path)
    of_rule: dict[str, list[float]] = {}
    for times in path:
        of_rule.setdefault(times.rule, []).append(times.wall)
    parts = [
        f"{rule} {_seconds(sum(walls))} s" + (f" ({len(walls)} jobs)" if len(walls) > 1 else "")
        for rule, walls in of_rule.items()
    ]
    cut = ", without the time in which no job ran" if axis.cuts() else ""
    return (
        f"The critical path took {_seconds(seconds)} s: {', '.join(parts)}. From the start of the "
        f"first job to the end of the last one it was {_seconds(axis.seconds)} s{cut}; all jobs "
        f"together took {_seconds(sum(times.wall for times in jobs))} s and "
        f"{_seconds(sum(times.cpu for times in jobs))} s of CPU time."
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _bars(jobs: Sequence[JobTimes], critical: set[str]) -> list[Bar]:
    """Return the bars by start: one for each job, if there are not too many."""
    for label in (_job_label, _group_label, _rule_label):
        grouped: dict[str, list[JobTimes]] = {}
        for times in jobs:
            grouped.setdefault(label(times), []).append(times)
        if len(grouped) <= MOST_ROWS:
            break
    bars = [
        Bar(
            visible(f"{name} ({len(of_name)} jobs)" if len(of_name) > 1 else name),
            of_name,
            any(times.job in critical for times in of_name),
        )
        for name, of_name in grouped.items()
    ]
    return sorted(bars, key=lambda bar: bar.start)


def _job_label(times: JobTimes) -> str:
    part = PART.search(times.job)
    if part:
        return f"{times.rule}, group {part[1]}, shard {part[2]}"
    name = times.job.partition(".")[2]
    return f"{times.rule}, {name[:14]}…" if len(name) > 15 else f"{times.rule} {name}".strip()


def _group_label(times: JobTimes) -> str:
    part = PART.search(times.job)
    return f"{times.rule}, group {part[1]}" if part else _job_label(times)


def _rule_label(times: JobTimes) -> str:
    return times.rule


def _drawn(bar: Bar, index: int, axis: Axis) -> Row:
    """Return the rectangles of a bar: the phases in order, as parts of its length."""
    start, end = axis.place(bar.start), axis.place(bar.end)
    total = sum(map(bar.seconds, PHASES)) or 1.0
    x, parts = LEFT + start, []
    for name in PHASES:
        width = (end - start) * bar.seconds(name) / total
        if width >= 0.05:
            text = f"{bar.label}: {name} {bar.seconds(name):.2f} s"
            parts.append({"x": f"{x:.1f}", "width": f"{width:.1f}", "phase": name, "text": text})
        x += width
    return {
        "label": bar.label,
        "critical": bar.critical,
        "y": TOP + ROW * index,
        "x": f"{LEFT + start:.1f}",
        "width": f"{max(end - start, 1):.1f}",
        "parts": parts,
    }


def _shown(bar: Bar, axis: Axis) -> Row:
    walls = sum(times.wall for times in bar.jobs)
    predicted = [times.facts.get("predicted") for times in bar.jobs]
    known = [float(seconds) for seconds in predicted if seconds is not None]
    return {
        "label": bar.label,
        "critical": bar.critical,
        "start": f"{axis.elapsed(bar.start):.1f}",
        "wall": f"{walls:.1f}",
        "main": [_short(bar.seconds(name)) for name in PHASES],
        "threads": [
            _short(sum(times.threads[name] for times in bar.jobs)) for name in ("encode", "write")
        ],
        "cpu": f"{sum(times.cpu for times in bar.jobs):.1f}",
        "predicted": f"{sum(known):.1f}" if len(known) == len(predicted) else "",
    }


def _short(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 0.05 else "0"
