"""Reasons why a run does not fit into memory or on the disk, and configurations that fit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from outlier_atlas.plan.memory_budget import MemoryBudget
from outlier_atlas.plan.requirements import Plan
from outlier_atlas.settings.sites import ATTN_SINK
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.units import shown

SHORTEST = 16
"""Length of the shortest advised sequences, in tokens."""


def block(section: Mapping[str, Any], current: Plan, fitting: Plan) -> str:
    """Return a configuration that fits, as YAML.

    The YAML contains the whole section `extraction`, and the changed keys of other sections.

    Args:
        section: the user's section `extraction`; only keys that differ between the plans change.
        current: the plan that does not fit.
        fitting: the plan that fits.
    """
    changed = dict(section)
    if changed.get("layer_groups") != "auto":
        changed["layer_groups"] = len(fitting.layout.layer_groups)
    if fitting.layout.store != current.layout.store:
        changed["store"] = [site for site in fitting.layout.store if site != ATTN_SINK]
    lines = ["extraction:\n", *_lines(changed)]
    if fitting.batch_size != current.batch_size:
        lines += ["execution:  # and its other keys\n", *_lines({"batch_size": fitting.batch_size})]
    if fitting.tokens != current.tokens:
        lines += ["dataset:  # and its other keys\n", *_lines({"sequence_length": fitting.tokens})]
    return "".join(lines)


def _lines(section: Mapping[str, Any]) -> Iterator[str]:
    for key, value in section.items():
        # The value is dumped in a list, because YAML ends a single scalar with `...`.
        text = yaml.safe_dump([value], default_flow_style=True, width=10**6).strip()
        yield f"  {key}: {text[1:-1]}\n"


def refusal(plan: Plan, budget: MemoryBudget) -> str | None:
    """Return why the jobs of a run do not fit into memory, in a sentence; None if they fit."""
    if plan.fits(budget):
        return None
    what, memory, called = plan.taken(budget), budget.memory, budget.called
    shared = budget.shared
    if memory is None or what <= memory:
        what, memory, called = plan.host_needed, budget.host_available, "the host of the device"
        shared = budget.jobs > 1
    assert memory is not None
    who, each = "a job takes", ""
    if shared:
        who, each = f"each of the {budget.jobs} jobs that run side by side takes", " for each"
    return (
        f"extraction.layer_groups = {len(plan.layout.layer_groups)}: {who} up to {shown(what)}, "
        f"and {called} has {shown(memory)}{each}"
    )


def remedy(plan: Plan, budget: MemoryBudget, run: Path, section: Mapping[str, Any]) -> str | None:
    """Return the block that fits a budget, and the disk if possible; None if none fits the budget.

    Args:
        plan: the plan that does not fit.
        budget: the memory of a job.
        run: folder of the run, as `full_disk` takes it.
        section: the user's `extraction` section.
    """
    fitting = fitting_plan(plan, budget)
    if fitting is not None and full_disk(fitting, run):  # more layer groups have more boundaries
        fitting = leaner(fitting, budget, run) or fitting
    return None if fitting is None else block(section, plan, fitting)


def fitting_plan(plan: Plan, budget: MemoryBudget) -> Plan | None:
    """Return the plan that fits and changes least; None if there is none.

    The search tries more layer groups first, because they change no result. Then it tries smaller
    batches, then shorter sequences.
    """
    for smaller in _smaller(plan):
        count = fewest_groups([(smaller, budget)])
        if count is not None:
            return smaller.divided(count)
    return None


def fewest_groups(plans: Sequence[tuple[Plan, MemoryBudget]]) -> int | None:
    """Return the fewest layer groups in which each plan fits its budget; None if no number fits.

    Args:
        plans: plans of one run with their budgets. The first plan has the layers that can be
            divided, and the smallest number of layer groups to try.
    """
    plan = plans[0][0]
    first = len(plan.layout.layer_groups)
    last = first if any(each.one_group for each, _ in plans) else plan.running

    def fits(count: int) -> bool:
        return all(each.divided(count).fits(budget) for each, budget in plans)

    return next(filter(fits, range(first, last + 1)), None) if fits(last) else None


def _smaller(plan: Plan) -> Iterator[Plan]:
    size, tokens = plan.batch_size, plan.tokens
    while size > 1:
        yield plan.batched(size)
        size //= 2
    while tokens >= SHORTEST or tokens == plan.tokens:
        yield plan.batched(1).shortened(tokens)
        tokens //= 2


def leaner(plan: Plan, budget: MemoryBudget, run: Path) -> Plan | None:
    """Return the plan that stores as many sites as fit on the disk; None if no number fits."""
    stored = plan.layout.store
    values = [site for site in stored if site != ATTN_SINK]
    for count in range(len(values) - 1, -1, -1):
        kept = {ATTN_SINK, *values[:count]}
        store = tuple(site for site in stored if site in kept)
        fewer = replace(plan, layout=replace(plan.layout, store=store))
        if fewer.fits(budget) and not full_disk(fewer, run):
            return fewer
    return None


def full_disk(plan: Plan, run: Path) -> str | None:
    """Return why a run does not fit on the disk, in a sentence; None if it fits.

    Bytes that the run has written already are subtracted.

    Args:
        plan: the plan of the run.
        run: folder of the run, or a folder above it that exists.
    """
    need = plan.disk
    free = shutil.disk_usage(run).free
    if need <= free:
        return None
    of_run = RunFiles(run)
    stores = (of_run.activations, of_run.boundaries, of_run.summaries)
    files = (path for store in stores for path in store.rglob("*") if path.is_file())
    need -= sum(path.stat().st_size for path in files)
    if need <= free:
        return None
    return (
        f"the run will take about {shown(need)} more on the disk, and {run} has {shown(free)}; "
        f"store fewer sites (extraction.store), take fewer extraction.layers or dataset.sequences, "
        f"or make room"
    )
