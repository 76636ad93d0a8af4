"""Whether a run fits, and the configuration that would."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from outlier_atlas.extraction.planning.limits import available
from outlier_atlas.extraction.planning.plan import Plan
from outlier_atlas.extraction.planning.units import bytes_of, shown


@dataclass(frozen=True)
class Place:
    """Where the jobs of a run have their forward pass.

    Attributes:
        name: what it is called; `cpu` for none beside the host.
        memory: bytes of the device, or of the host where there is none; None if it does not say.
        called: what has so many bytes, in words.
        host_memory: bytes of the host; None where it does not say, or is not this machine.
    """

    name: str
    memory: int | None
    called: str
    host_memory: int | None

    @property
    def host(self) -> bool:
        """Whether the forward pass is on the host."""
        return self.name == "cpu"

    @classmethod
    def of(cls, devices: Sequence[str], name: str, given: str | None) -> Place:
        """The place of devices of this machine, with no more than `execution.device_memory`.

        It has as much memory as the fullest of them.

        Args:
            devices: `cuda:0` and such, or `mps`, or `cpu`.
            name: of the first.
            given: such as `24GiB`.
        """
        memory, called = min(map(available, devices), key=lambda known: known[0] or 0)
        if given is not None and (memory is None or bytes_of(given) < memory):
            memory, called = bytes_of(given), "execution.device_memory"
        return cls(name, memory, called, available("cpu")[0])

    @classmethod
    def elsewhere(cls, given: str) -> Place:
        """A device that is not on this machine."""
        return cls("a device elsewhere", bytes_of(given), "execution.device_memory", None)


def block(section: Mapping[str, Any], current: Plan, fitting: Plan) -> str:
    """The `extraction:` block that fits, as YAML; what else has to change follows as comments.

    Args:
        section: the user's own; all but the number of layer groups stays.
        current: the plan that does not fit.
        fitting: the one that does.
    """
    changed = {**section, "layer_groups": len(fitting.layout.layer_groups)}
    lines = ["extraction:\n"]
    for key, value in changed.items():
        # In a list, since a lone scalar is followed by `...`.
        said = yaml.safe_dump([value], default_flow_style=True, width=10**6).strip()
        lines.append(f"  {key}: {said[1:-1]}\n")
    if fitting.batch_size != current.batch_size:
        lines.append(f"# and under execution:  batch_size: {fitting.batch_size}\n")
    if fitting.tokens != current.tokens:
        lines.append(f"# and under dataset:  sequence_length: {fitting.tokens}\n")
    return "".join(lines)


def refusal(plan: Plan, place: Place) -> str | None:
    """Why a run's jobs do not fit into memory, in a sentence; None where they do."""
    peak = plan.peak(place.host)
    what, memory, called = peak, place.memory, place.called
    if plan.fits(memory, place.host):
        beside = max(group.host for group in plan.groups)
        if place.host or place.host_memory is None or beside <= place.host_memory:
            return None
        what, memory, called = beside, place.host_memory, "the host beside the device"
    assert memory is not None
    return (
        f"extraction.layer_groups = {len(plan.layout.layer_groups)}: a job takes up to "
        f"{shown(what)}, and {called} has {shown(memory)}"
    )


def remedy(plan: Plan, place: Place, section: Mapping[str, Any]) -> str | None:
    """The block that fits a place; None where nothing does."""
    memory = place.memory
    if memory is None or plan.fits(memory, place.host):
        assert place.host_memory is not None
        return _for_the_host(plan, place.host_memory, section)
    fitting = plan.fitting(memory, place.host)
    return None if fitting is None else block(section, plan, fitting)


def _for_the_host(plan: Plan, memory: int, section: Mapping[str, Any]) -> str | None:
    for count in range(len(plan.layout.layer_groups), plan.running + 1):
        finer = plan.divided(count)
        if max(group.host for group in finer.groups) <= memory:
            return block(section, plan, finer)
    return None


def full_disk(plan: Plan, run: Path) -> str | None:
    """Why a run does not fit on the disk, in a sentence; None where it does.

    What the run has written already is taken off.

    Args:
        run: its folder; or a folder that it will lie in.
    """
    need = plan.disk
    free = shutil.disk_usage(run).free
    if need <= free:
        return None
    stores = ("activations.zarr", "boundaries.zarr", "summaries")
    files = (path for store in stores for path in (run / store).rglob("*") if path.is_file())
    need -= sum(path.stat().st_size for path in files)
    if need <= free:
        return None
    return (
        f"the run will take about {shown(need)} more on the disk, and {run} has {shown(free)}; "
        f"store fewer sites (extraction.store), take fewer extraction.layers or dataset.sequences, "
        f"or make room"
    )
