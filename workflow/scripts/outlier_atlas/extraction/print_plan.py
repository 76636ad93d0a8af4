"""Printing of the plan for `snakemake plan`."""

from __future__ import annotations

from outlier_atlas.extraction import choice, layer_groups, preflight
from outlier_atlas.extraction.prepare import planned
from outlier_atlas.job_metrics import rates
from outlier_atlas.plan.memory_budget import MemoryBudget
from outlier_atlas.plan.table import table
from outlier_atlas.settings.configuration import Settings
from outlier_atlas.store.run import Run


def print_plan(settings: Settings, run: Run, jobs: int = 1) -> None:
    """Print memory, disk and time of a run, and refuse a run that cannot fit.

    The plan is for the CPU if there is no GPU and no `execution.device_memory`.

    Args:
        settings: the configuration.
        run: the run.
        jobs: number of extraction jobs of the run that can run at the same time.

    Raises:
        ValueError: the run cannot fit; the model has no such site or layer; or its files lack
            weights, or have weights of another shape or weights that the model does not use.
    """
    execution, extraction, folder = settings.execution, settings.extraction, run.folder
    run_plan = planned(settings, run)
    concurrent = preflight.concurrent_jobs(jobs, execution.device, execution.gpus_per_job, folder)
    budget = preflight.foreseen(execution.device, execution.device_memory, concurrent)
    chosen = extraction.layer_groups == "auto"
    if chosen:
        run_plan = run_plan.divided(_automatic(settings, run, budget))
    if execution.batch_size == "auto":
        sequences = settings.dataset.sequences // extraction.sequence_shards
        run_plan = run_plan.batched(preflight.batch_size(run_plan, budget, sequences))
    print(table(run_plan, budget, rates(folder.parent, run_plan.model, budget.name), folder))
    own = extraction.model_dump(mode="json", exclude_defaults=True)
    preflight.refuse(run_plan, budget, folder, own, chosen)


def _automatic(settings: Settings, run: Run, budget: MemoryBudget) -> int:
    """Return the number of layer groups that `auto` chooses, or the maximum if none fits."""
    record = run.layer_groups_record
    number = choice.recorded(record, choice.inputs_of(settings, run.model_record))
    if number is not None:
        print(f"extraction.layer_groups: auto was {number} when it was chosen ({record})")
        return number
    plans = layer_groups.plans(settings, run, budget)
    number = layer_groups.fewest(plans)
    if number is None:
        return layer_groups.most(plans)
    print(layer_groups.described(number, budget))
    return number
