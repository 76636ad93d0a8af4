"""Printed table of the plan."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from outlier_atlas.plan.group import GroupPlan
from outlier_atlas.plan.memory_budget import MemoryBudget
from outlier_atlas.plan.requirements import Plan
from outlier_atlas.units import shown


def table(plan: Plan, budget: MemoryBudget, time: Sequence[str], folder: Path) -> str:
    """Return a table of layer groups, followed by the requirements of the whole run.

    Args:
        plan: the plan of the run.
        budget: the memory of a job.
        time: lines about the time of the run (`expected.lines`).
        folder: folder of the run, whose disk is checked.
    """
    return "\n".join(
        [
            _title(plan, budget),
            "",
            *_groups(plan, budget),
            "",
            *_below(plan, budget, folder),
            *time,
            *([f"Not loaded: {', '.join(plan.skipped)}."] if plan.skipped else []),
        ]
    )


def _title(plan: Plan, budget: MemoryBudget) -> str:
    count = len(plan.layout.layer_groups)
    groups = "1 layer group" if count == 1 else f"{count} layer groups"
    where = "the CPU" if budget.host else budget.name
    return (
        f"Plan: {plan.running} layers of {plan.model} in {groups}, {plan.layout.dtype}, "
        f"{plan.batch_size} x {plan.tokens:,} tokens a batch, on {where}"
    )


def _groups(plan: Plan, budget: MemoryBudget) -> list[str]:
    above = ("", "", "weights", "", "of one batch", "", "", "at most", "")
    head = (
        "layer group", "layers", "on disk", "in memory", "forward", "sites", "boundary", "device",
        "host",
    )  # fmt: skip
    rows = [_row(index, group, budget) for index, group in enumerate(plan.groups)]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    # A heading over several columns starts at the first of them.
    top = "  ".join(cell.ljust(width) for cell, width in zip(above, widths, strict=True))
    body = [_aligned(row, widths) for row in (head, *rows)]
    rule = "-" * len(body[0])
    return [top.rstrip(), body[0], rule, *body[1:]]


def _row(index: int, group: GroupPlan, budget: MemoryBudget) -> tuple[str, ...]:
    first, last = group.layers
    return (
        str(index),
        f"{first} to {last}" if last > first else str(first),
        shown(group.file),
        shown(group.weights),
        "?" if group.forward is None else shown(group.forward),
        shown(group.sites),
        shown(group.boundary) if group.boundary else "-",
        "-" if budget.host or budget.unified else shown(group.device),
        shown(_on_host(group, budget)),
    )


def _on_host(group: GroupPlan, budget: MemoryBudget) -> int:
    if budget.unified:
        return group.unified
    return group.host_alone if budget.host else group.host


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _below(plan: Plan, budget: MemoryBudget, folder: Path) -> list[str]:
    lines = []
    each = f" for each of {budget.jobs} jobs side by side" if budget.jobs > 1 else ""
    if budget.memory is not None:
        share = each if budget.shared else ""
        both = ", of which the device takes its part" if budget.unified else ""
        lines.append(f"Memory: {budget.called} has {shown(budget.memory)}{share}{both}.")
    if budget.host_available is not None:
        lines.append(f"Its host has {shown(budget.host_available)}{each}.")
    if budget.host:
        device = max(group.device for group in plan.groups)
        host = max(group.host for group in plan.groups)
        lines.append(
            f"On a GPU a job would take up to {shown(device)} of it, and {shown(host)} of the host."
        )
    between = shown(plan.on_disk(plan.boundary_values)) if plan.boundary_values else "none"
    lines.append(
        f"Disk: about {shown(plan.disk)} in {plan.files:,} files, of which {between} at "
        f"boundaries and {shown(plan.summary_bytes)} in summaries; "
        f"{shown(shutil.disk_usage(folder).free)} are free."
    )
    return lines
