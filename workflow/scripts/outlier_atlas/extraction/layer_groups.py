"""Choice of the fewest layer groups that fit, for `extraction.layer_groups: auto`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from outlier_atlas.devices.gpus import visible_gpus
from outlier_atlas.devices.leases import devices
from outlier_atlas.devices.registry import is_host
from outlier_atlas.extraction import choice, preflight
from outlier_atlas.extraction.prepare import planned, planned_ablation
from outlier_atlas.plan.advice import fewest_groups
from outlier_atlas.plan.memory_budget import GIVEN, MemoryBudget
from outlier_atlas.plan.requirements import Plan
from outlier_atlas.settings.configuration import Settings
from outlier_atlas.store.run import Run
from outlier_atlas.units import shown

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """The machine on which jobs of the run will run.

    Attributes:
        jobs: number of extraction jobs of the run that can run at the same time.
        scheduled: whether a scheduler chooses the machine, so that its memory is unknown here.
    """

    jobs: int = 1
    scheduled: bool = False


def choose(settings: Settings, run: Run, machine: Machine) -> None:
    """Choose and record the number of layer groups of a run.

    Args:
        settings: the whole configuration.
        run: the run.
        machine: the machine of the jobs.

    Raises:
        ValueError: a single layer does not fit, the memory of the jobs is not known, or the model
            cannot be measured as configured.
    """
    budget = _budget(settings, run.folder, machine)
    needs = plans(settings, run, budget)
    number = fewest(needs)
    if number is None:
        _refuse(settings, needs, run.folder)
    log.info("%s", described(number, budget))
    choice.write(run.layer_groups_record, number, choice.inputs_of(settings, run.model_record))


def described(number: int, budget: MemoryBudget) -> str:
    """Return a sentence on a choice and its memory budget."""
    noun = "layer group" if number == 1 else "layer groups"
    assert budget.memory is not None
    each = f" for each of {budget.jobs} jobs side by side" if budget.shared else ""
    has = f"{budget.called} has {shown(budget.memory)}{each}"
    return f"extraction.layer_groups: auto takes {number} {noun}: {has}"


Needs = list[tuple[Plan, MemoryBudget]]
"""Plans of a run in one layer group, each with its memory budget."""


def plans(settings: Settings, run: Run, budget: MemoryBudget) -> Needs:
    """Return the plans of extraction and of ablation, each with its memory budget.

    Raises:
        ValueError: the memory of the budget is unknown, or the model cannot be measured as
            configured.
    """
    if budget.memory is None:
        raise ValueError(
            f"extraction.layer_groups = 'auto': nothing tells how much memory {budget.called} has "
            f"free; set execution.device_memory to what a job may take, or set a number of layer "
            f"groups"
        )
    extraction_plan = planned(settings, run)
    needs = [(extraction_plan, budget)]
    if settings.ablation.sequences:  # a single job with the same layer groups
        trust = settings.model.trust_remote_code
        ablation = planned_ablation(extraction_plan, trust, run)
        needs.append((ablation, budget.alone or budget))
    return needs


def most(needs: Needs) -> int:
    """Return the maximum number of layer groups of a run."""
    plan, _ = needs[0]
    return 1 if any(each.one_group for each, _ in needs) else plan.running


def fewest(needs: Needs) -> int | None:
    """Return the fewest layer groups that fit, with a reserve if possible; None if none fit.

    The reserve covers memory that is no longer free when the jobs start.
    """
    spared = fewest_groups([(plan, _with_reserve(budget)) for plan, budget in needs])
    return spared or fewest_groups(needs)


def _with_reserve(budget: MemoryBudget) -> MemoryBudget:
    """Return a budget with measured memory reduced by the reserve; configured memory is exact."""

    def less(size: int | None) -> int | None:
        return None if size is None else int(size * (1 - preflight.RESERVE))

    memory = budget.memory if budget.called == GIVEN else less(budget.memory)
    return replace(budget, memory=memory, host_memory=less(budget.host_memory))


def _refuse(settings: Settings, needs: Needs, run: Path) -> NoReturn:
    """Refuse a run that fits in no number of layer groups.

    A configuration that fits is logged before.

    Raises:
        ValueError: always.
    """
    section = settings.extraction.model_dump(mode="json", exclude_defaults=True)
    for plan, budget in needs:
        preflight.refuse(plan.divided(most(needs)), budget, run, section)
    raise AssertionError("one of the plans does not fit")


def _budget(settings: Settings, run: Path, machine: Machine) -> MemoryBudget:
    """Return the budget of the run's jobs, measured under a lease like in a job."""
    execution = settings.execution
    given, device, gpus = execution.device_memory, execution.device, execution.gpus_per_job
    if machine.scheduled:
        if given is None:
            raise ValueError(
                "extraction.layer_groups = 'auto': jobs run on machines of a scheduler, "
                "whose memory is not known here; set execution.device_memory to what a job has "
                "there (of the host with execution.device: cpu), or set a number of layer groups"
            )
        return MemoryBudget.elsewhere(given, host=is_host(device))
    concurrent = preflight.concurrent_jobs(machine.jobs, device, gpus, run)
    if device not in ("auto", "cuda") or not visible_gpus():
        return preflight.foreseen(device, given, concurrent)
    # The lease waits for GPUs that jobs of other runs use, because their free memory is not the
    # memory that jobs of this run will have.
    with devices(device, gpus, f"{run.name}, choice of layer groups") as where:
        return preflight.budget_of(where, given, concurrent)
