"""The plan of a run as `snakemake plan` prints it."""

from __future__ import annotations

from outlier_atlas.extraction import choice, layer_groups, preflight
from outlier_atlas.extraction.prepare import planned
from outlier_atlas.job_metrics import rates
from outlier_atlas.plan.memory_budget import MemoryBudget
from outlier_atlas.plan.table import table
from outlier_atlas.settings.configuration import Settings
from outlier_atlas.store.run import Run


def print_plan(settings: Settings, run: Run, jobs: int = 1) -> None:
    """Print what a run takes, and refuse one that cannot fit.

    Without a device here and without `execution.device_memory` it is planned for the CPU.

    Args:
        jobs: of its extraction that can run side by side.

    Raises:
        ValueError: it cannot fit, the model has no such site or layer, or its files lack weights,
            or have other ones.
    """
    execution, extraction, folder = settings.execution, settings.extraction, run.folder
    made = planned(settings, run)
    concurrent = preflight.concurrent_jobs(jobs, execution.device, execution.gpus_per_job, folder)
    budget = preflight.foreseen(execution.device, execution.device_memory, concurrent)
    chosen = extraction.layer_groups == "auto"
    if chosen:
        made = made.divided(_automatic(settings, run, budget))
    if execution.batch_size == "auto":
        sequences = settings.dataset.sequences // extraction.sequence_shards
        made = made.batched(preflight.batch_size(made, budget, sequences))
    print(table(made, budget, rates(folder.parent, made.model, budget.name), folder))
    own = extraction.model_dump(mode="json", exclude_defaults=True)
    preflight.refuse(made, budget, folder, own, chosen)


def _automatic(settings: Settings, run: Run, budget: MemoryBudget) -> int:
    """Return what `extraction.layer_groups: auto` is; where none fits, the most there can be."""
    record = run.layer_groups_record
    number = choice.recorded(record, choice.wanted(settings, run.model_record))
    if number is not None:
        print(f"extraction.layer_groups: auto was {number} when it was chosen ({record})")
        return number
    plans = layer_groups.plans(settings, run, budget)
    number = layer_groups.fewest(plans)
    if number is None:
        return layer_groups.most(plans)
    print(layer_groups.described(number, budget))
    return number
