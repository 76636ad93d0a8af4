"""Printing of the plan for `snakemake plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outlier_atlas.extraction import choice, layer_groups, preflight
from outlier_atlas.extraction.prepare import planned
from outlier_atlas.plan import expected
from outlier_atlas.plan.expected import Place, Stages
from outlier_atlas.plan.memory_budget import MemoryBudget
from outlier_atlas.plan.requirements import Plan
from outlier_atlas.plan.speed import faster_in_float32, with_speed
from outlier_atlas.plan.table import table
from outlier_atlas.settings.configuration import Settings
from outlier_atlas.store.run import Run


@dataclass(frozen=True)
class Jobs:
    """The jobs of a run, as Snakemake would start them.

    Attributes:
        at_once: number of extraction jobs of the run that can run at the same time.
        threads: number of CPU threads of an extraction job.
        cores: number of cores that all jobs share.
        done: rules whose files other runs of the model or the dataset have left.
    """

    at_once: int = 1
    threads: int = 1
    cores: int = 1
    done: Sequence[str] = ()


def print_plan(settings: Settings, run: Run, jobs: Jobs = Jobs()) -> None:
    """Print memory, disk and time of a run, and refuse a run that cannot fit.

    The plan is for the CPU if there is no GPU and no `execution.device_memory`.

    Args:
        settings: the configuration.
        run: the run.
        jobs: the jobs of the run.

    Raises:
        ValueError: the run cannot fit; the model has no such site or layer; or its files lack
            weights, or have weights of another shape or weights that the model does not use.
    """
    execution, extraction, folder = settings.execution, settings.extraction, run.folder
    run_plan = planned(settings, run)
    concurrent = preflight.concurrent_jobs(
        jobs.at_once, execution.device, execution.gpus_per_job, folder
    )
    budget = preflight.foreseen(execution.device, execution.device_memory, concurrent)
    chosen = extraction.layer_groups == "auto"
    if chosen:
        run_plan = run_plan.divided(_automatic(settings, run, budget))
    if execution.batch_size == "auto":
        sequences = settings.dataset.sequences // extraction.sequence_shards
        run_plan = run_plan.batched(preflight.batch_size(run_plan, budget, sequences))
    print(table(run_plan, budget, _time(settings, run, run_plan, budget, jobs), folder))
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


def _time(
    settings: Settings, run: Run, run_plan: Plan, budget: MemoryBudget, jobs: Jobs
) -> list[str]:
    """Return the lines about the time of a run, and about a faster dtype."""
    place = Place.here(budget.name, jobs.threads, jobs.cores, jobs.at_once, run.resources)
    place = with_speed(place, run_plan)
    stages = _stages(settings, run, jobs)
    time = expected.whole_run(run_plan, place, stages)
    lines = expected.lines(time, expected.left_out(stages), place.speed is not None)
    if budget.host:
        lines += faster_in_float32(settings.model.dtype).splitlines()
    return lines


def _stages(settings: Settings, run: Run, jobs: Jobs) -> Stages:
    weight_bytes = run.model.get("weight_bytes", 0)
    return Stages(
        weight_bytes=int(weight_bytes) if settings.weights.measure else None,
        heldout=settings.ablation.sequences * settings.dataset.sequence_length,
        rounded=settings.detection.quantization_error.sites,
        done=jobs.done,
    )
