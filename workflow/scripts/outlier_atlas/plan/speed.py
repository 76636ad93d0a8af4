"""Speed of matrix products on a device, measured within a tenth of a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.nn import functional

from outlier_atlas.devices.registry import HOST, is_host
from outlier_atlas.loading.partial import DTYPES
from outlier_atlas.plan.expected import Place
from outlier_atlas.plan.requirements import Plan

ON_HOST, ON_DEVICE = (64, 512, 512), (4096, 2048, 2048)
"""Rows, inputs and outputs of the product. The one on the host takes 4 ms on a core that has no
instructions for the dtype."""

SECONDS = 0.02
"""Seconds after which no further product is started."""

NARROW = ("bfloat16", "float16")
"""Dtypes of two bytes, for which some CPUs have no instructions."""

WORTH_A_WORD = 1.5
"""Ratio of two speeds from which on the plan mentions it."""


def products_per_second(device: str, dtype: str, threads: int = 1) -> float:
    """Return the multiplications per second of a matrix product.

    Of a CPU, one core is measured: a core that other processes use would delay all others.

    Args:
        device: name of the device in torch.
        dtype: a key of `DTYPES`.
        threads: number of CPU threads that the result is for.
    """
    rows, inputs, outputs = ON_HOST if is_host(device) else ON_DEVICE
    left = torch.ones((rows, inputs), dtype=DTYPES[dtype], device=device)
    right = torch.ones((outputs, inputs), dtype=DTYPES[dtype], device=device)
    # CPU time: other processes on the core do not count.
    clock = time.thread_time if is_host(device) else time.perf_counter
    best = float("inf")
    with _one_thread(), torch.inference_mode():
        functional.linear(left, right)  # the first product includes preparations
        _finish(device)
        begun = clock()
        while (started := clock()) - begun < SECONDS:
            functional.linear(left, right)
            _finish(device)
            best = min(best, clock() - started)
    return rows * inputs * outputs / best * (threads if is_host(device) else 1)


def with_speed(place: Place, plan: Plan) -> Place:
    """Return a place with the measured speed of its CPU, if no earlier job is known there."""
    if not is_host(place.device) or place.knows(plan):
        return place
    return replace(place, speed=products_per_second(HOST, plan.layout.dtype, place.threads))


def faster_in_float32(dtype: str) -> str:
    """Return a sentence if this CPU is clearly faster in float32 than in a dtype; else ""."""
    if dtype not in NARROW:
        return ""
    ratio = products_per_second("cpu", "float32") / products_per_second("cpu", dtype)
    if ratio < WORTH_A_WORD:
        return ""
    return (
        f"This CPU multiplies matrices about {ratio:.{0 if ratio >= 3 else 1}f} times as fast in "
        f"float32 as in {dtype} (measured now).\n"
        f"`model.dtype: float32` takes twice the memory, and its values differ: they are more "
        f"exact."
    )


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
