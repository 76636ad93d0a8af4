"""The model of time: seconds that a job takes, predicted from earlier jobs on this machine.

The most similar earlier job is scaled phase by phase: imports take the same time again, loading
grows with the bytes of the weights, computing with the multiplications, copying and writing with
the numbers. Without a similar job the prediction is a guess, and says so.

The plan, the progress of jobs and the time of a whole run (`run_time`) use this model. It imports
no large packages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outlier_atlas.devices.registry import is_host
from outlier_atlas.earlier_jobs import (
    CAPTURED,
    FILE,
    PRODUCTS,
    STORED,
    TOKENS,
    VALUES,
    EarlierJob,
    Kind,
)
from outlier_atlas.phases import COMPUTE, COPY, ENCODE, IMPORT, LOAD, OTHER, WRITE

EXTRACTION = "extract_activations"

FIXED = {
    FILE: 50e6, PRODUCTS: 5e9, CAPTURED: 5e6, STORED: 5e6, TOKENS: 5e4, VALUES: 5e7,
}  # fmt: skip
"""Amount of work that takes as long as what a job does for any amount: building a model, first
calls, opening files. Measured roughly; it keeps a small job from being scaled to nothing."""

GROWS_WITH = {LOAD: FILE, COMPUTE: PRODUCTS, COPY: CAPTURED, ENCODE: STORED, WRITE: STORED}
"""Amount that each phase of an extraction job grows with; the other phases are constant. In other
jobs all phases but imports grow with the one amount that the job has."""

GUESSED: Mapping[str, tuple[float, float]] = {
    "choose_layer_groups": (6.0, 0.0),
    "tokenize_dataset": (5.0, 1e-5),
    "create_store": (6.0, 0.0),
    "measure_weights": (5.0, 8e-8),
    "detect_outliers": (4.0, 2e-8),
    "join_weights": (1.0, 0.0),
    "ablate": (10.0, 5e-2),
    "render_report": (1.0, 0.0),
}
"""Seconds of a job, and of each unit of its amount of work, where nothing is known: roughly those
of the demo on two cores."""

GUESSED_EXTRACTION = {IMPORT: 4.5, OTHER: 1.5, LOAD: 2e-9, COPY: 1e-9, WRITE: 1e-9}
"""Seconds of an extraction job, of imports and the plan; for each unit of work, of the others."""

GUESSED_SPEED = {"cpu": 5e10, "device": 1e13}
"""Multiplications per second of a forward pass without any measurement: of a CPU with few cores,
and of a GPU at half load."""

EFFICIENCY = 0.8
"""Speed of a forward pass over the measured speed of a single matrix product."""


@dataclass(frozen=True)
class JobTime:
    """The predicted time of a job.

    Attributes:
        main: seconds of the main thread by phase, without waiting for other jobs.
        earlier: the earlier job that the prediction is made from; None for a guess.
    """

    main: Mapping[str, float]
    earlier: EarlierJob | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the job."""
        return sum(self.main.values())


def predict(
    kind: Kind,
    sizes: Mapping[str, float],
    earlier: Sequence[EarlierJob],
    speed: float | None = None,
) -> JobTime:
    """Return the predicted time of a job.

    Args:
        kind: what the time depends on, except for the amount of work.
        sizes: the amounts of work of the job.
        earlier: earlier jobs on the machine.
        speed: measured multiplications per second of a matrix product, for a guess.
    """
    similar = [job for job in earlier if _comparable(kind, job.kind)]
    if not similar:
        return _guess(kind, sizes, speed)
    return _scaled(min(similar, key=lambda job: _distance(kind, sizes, job)), kind, sizes)


def _comparable(kind: Kind, other: Kind) -> bool:
    same = (kind.rule, kind.machine) == (other.rule, other.machine)
    return same and kind.device in ("", other.device) and kind.dtype in ("", other.dtype)


def _distance(kind: Kind, sizes: Mapping[str, float], job: EarlierJob) -> tuple[bool, bool, float]:
    """Return what makes an earlier job less similar, the most important first."""
    other_model = bool(kind.model) and kind.model != job.kind.model
    apart = sum(abs(math.log(_growth(name, sizes, job.sizes))) for name in sizes)
    return other_model, kind.cores != job.kind.cores, apart


def _growth(name: str, sizes: Mapping[str, float], before: Mapping[str, float]) -> float:
    """Return how much more time an amount of work takes than an earlier one."""
    if name not in sizes or name not in before:
        return 1.0
    return (sizes[name] + FIXED[name]) / (before[name] + FIXED[name])


def _scaled(job: EarlierJob, kind: Kind, sizes: Mapping[str, float]) -> JobTime:
    growth = {name: _growth(name, sizes, job.sizes) for name in sizes}
    # Cores speed up computing; the other phases mostly wait, or use one core.
    cores = job.kind.cores / kind.cores
    if kind.rule != EXTRACTION:
        of_all = next(iter(growth.values()), 1.0)
        factor = {name: 1.0 if name == IMPORT else of_all for name in job.main}
        main = {name: seconds * factor[name] for name, seconds in job.main.items()}
        main[COMPUTE] = main.get(COMPUTE, 0.0) * cores
        return JobTime(main, job)
    main = {
        name: seconds * growth.get(GROWS_WITH.get(name, ""), 1.0)
        for name, seconds in job.main.items()
    }
    main[COMPUTE] = _computing(job, growth) * cores
    return JobTime(main, job)


def _computing(job: EarlierJob, growth: Mapping[str, float]) -> float:
    """Return the seconds of a forward pass, on the cores of an earlier job.

    On the host, the writing threads take their time from the forward pass.
    """
    taken = 0.0
    if is_host(job.kind.device):
        writing = job.threads.get(ENCODE, 0.0) + job.threads.get(WRITE, 0.0)
        taken = min(writing / job.kind.cores, job.main[COMPUTE] / 2)
    alone = job.main[COMPUTE] - taken
    return alone * growth.get(PRODUCTS, 1.0) + taken * growth.get(STORED, 1.0)


def _guess(kind: Kind, sizes: Mapping[str, float], speed: float | None) -> JobTime:
    if kind.rule != EXTRACTION:
        fixed, each = GUESSED.get(kind.rule, (5.0, 0.0))
        return JobTime({OTHER: fixed, COMPUTE: each * sum(sizes.values())})
    if speed is None:
        rate = GUESSED_SPEED["cpu" if is_host(kind.device) else "device"]
    else:
        rate = speed * EFFICIENCY
    main = {
        name: seconds for name, seconds in GUESSED_EXTRACTION.items() if name in (IMPORT, OTHER)
    }
    for name in (LOAD, COPY, WRITE):
        main[name] = GUESSED_EXTRACTION[name] * sizes.get(GROWS_WITH[name], 0.0)
    return JobTime(main | {COMPUTE: sizes.get(PRODUCTS, 0.0) / rate})
