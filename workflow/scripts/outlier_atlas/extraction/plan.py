"""What a run takes, before a weight is read: from the configuration and the headers alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_atlas.extraction.writer import QUEUE_BYTES
from outlier_atlas.model.architecture import describe
from outlier_atlas.model.footprint import Sizes, file_bytes, sizes
from outlier_atlas.model.source import load_config, locate
from outlier_atlas.settings.extraction import even_ranges
from outlier_atlas.settings.sites import EXPERT_OUT
from outlier_atlas.store.layout import Layout

PROCESS_BYTES = 330 * 2**20
"""What Python, torch and transformers take of a job's memory before there is a model; measured."""

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class GroupPlan:
    """What one layer group takes, in bytes.

    Attributes:
        layers: first and last.
        file: of its weights in the checkpoint's files.
        weights: of its weights in memory.
        fullest: of those on the fullest of its devices.
        forward: of the forward pass of a batch, beside the weights; None where it is not known.
        sites: of the activations of a batch that are taken, in the dtype of the forward pass.
        boundary: of the residual stream of a batch that is left to the next layer group.
        gathered: of chunks that sequences fill only in part, until they are complete.
    """

    layers: tuple[int, int]
    file: int
    weights: int
    fullest: int
    forward: int | None
    sites: int
    boundary: int
    gathered: int

    @property
    def _in_flight(self) -> int:
        return min(QUEUE_BYTES, self.sites + self.boundary)

    @property
    def device(self) -> int:
        """The most on a device: weights, forward pass, and copies on their way to the host."""
        return self.fullest + (self.forward or 0) + self._in_flight

    @property
    def host(self) -> int:
        """The most in the memory of the host, of a process whose forward pass is on a device."""
        return PROCESS_BYTES + max(self.weights, self._in_flight + self.gathered)

    @property
    def host_alone(self) -> int:
        """The most in the memory of the host, of a process whose forward pass is there, too."""
        return PROCESS_BYTES + self.weights + (self.forward or 0) + self._in_flight + self.gathered


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        groups: by layer group.
        sizes: of the model, from which another division is worked out.
        layout: of the store.
        skipped: parts of the model that are not loaded, by path.
        gpus: devices that a job spreads its layers over.
    """

    groups: tuple[GroupPlan, ...]
    sizes: Sizes
    layout: Layout
    skipped: tuple[str, ...]
    gpus: int

    @property
    def values(self) -> int:
        """Number of values in the store."""
        numbers = sum(map(self.layout.numbers, self.layout.sites))
        return len(self.layout.layers) * self.layout.tokens * numbers

    @property
    def boundary_values(self) -> int:
        """Number of values at the boundaries."""
        return len(self.layout.boundaries()) * self.layout.tokens * self.layout.hidden_size

    @property
    def files(self) -> int:
        """Number of chunks, each a file."""
        of_sites = len(self.layout.layers) * sum(self.layout.arrays(s) for s in self.layout.sites)
        return (of_sites + len(self.layout.boundaries())) * self.layout.chunks

    def peak(self, host: bool) -> int:
        """The most that any job takes where its forward pass is: on the host, or on a device."""
        return max(group.host_alone if host else group.device for group in self.groups)

    def enough_groups(self, available: int, host: bool) -> int | None:
        """The least number of layer groups whose jobs fit; None where one layer is too much."""
        running = self.layout.layer_groups[-1][1] + 1
        fixed = self.peak(host) - max(group.fullest for group in self.groups)
        for count in range(1, running + 1):
            parts = even_ranges(running, count)
            fullest = max(self.sizes.fullest(range(*part), self.gpus) for part in parts)
            if fullest + fixed <= available:
                return count
        return None

    def check(self, available: int, host: bool, where: str) -> None:
        """Refuse a run that cannot fit.

        Args:
            available: bytes.
            host: whether the forward pass is on the host.
            where: what has so many bytes, in words.

        Raises:
            ValueError: it does not fit; the sentence holds what would.
        """
        peak = self.peak(host)
        if peak <= available:
            return
        enough = self.enough_groups(available, host)
        if enough is None:
            advice = "not even one layer at a time fits: take shorter sequences or a smaller batch"
        else:
            advice = f"it fits with `extraction: {{layer_groups: {enough}}}`"
        raise ValueError(
            f"extraction.layer_groups = {len(self.groups)}: a job takes up to {shown(peak)}, and "
            f"{where} has {shown(available)}; {advice}"
        )

    def table(self, folder: Path) -> str:
        """The plan in words and numbers.

        Args:
            folder: where the run will lie, for the space that is free there.
        """
        head = ("layer group", "layers", "in files", "weights", "forward", "sites", "boundary",
                "on a device", "host beside it", "host alone")  # fmt: skip
        rows = [
            (
                str(index), f"{group.layers[0]} to {group.layers[1]}", shown(group.file),
                shown(group.weights), "?" if group.forward is None else shown(group.forward),
                shown(group.sites), shown(group.boundary) if group.boundary else "-",
                shown(group.device), shown(group.host),
                shown(group.host_alone),
            )
            for index, group in enumerate(self.groups)
        ]  # fmt: skip
        free = shutil.disk_usage(folder).free
        most = 4 * (self.values + self.boundary_values)
        lines = [
            *_aligned([head, *rows]),
            "",
            "Of a batch: the forward pass beside the weights, the sites that are taken, and the "
            "boundary that is left. At most, of a job: on a device, on the host beside one, and on "
            "the host alone (there is no device).",
            f"Disk: {self.files:,} chunks, {shown(most)} before compression, of which "
            f"{shown(4 * self.boundary_values)} at boundaries; {shown(free)} are free. What was "
            f"computed in bfloat16 takes about 0.4 of that.",
        ]
        if self.skipped:
            lines.append(f"Not loaded: {', '.join(self.skipped)}.")
        return "\n".join(lines)


def plan(
    layout: Layout,
    model: Mapping[str, Any],
    resources: Path,
    batch_size: int,
    tokens: int,
    gathers: bool,
    trust_remote_code: bool,
    gpus: int = 1,
) -> Plan:
    """The plan of a run; no weight is read.

    Args:
        layout: of its store.
        model: the record of the model; `resources` is the folder that it is relative to.
        batch_size: sequences in a forward pass.
        tokens: of the longest sequence.
        gathers: whether sequences do not fill whole chunks.
        trust_remote_code: whether code from the checkpoint may run.
        gpus: devices that a job spreads its layers over.
    """
    folder = locate(model, resources)
    config = load_config(folder, trust_remote_code)
    architecture = describe(config, trust_remote_code)
    parts = sizes(config, architecture, layout.dtype, batch_size, tokens)
    file = file_bytes(folder, model["files"], architecture)
    width = 4 if layout.dtype == "float32" else 2
    # What is recorded of experts is float32 whatever they compute in.
    a_layer = sum(layout.numbers(s) * (4 if s == EXPERT_OUT else width) for s in layout.sites)
    groups = []
    for index, (first, last) in enumerate(layout.layer_groups):
        layers = range(first, last + 1)
        taken = a_layer * sum(layer in layout.layers for layer in layers)
        left = layout.hidden_size * width if layout.boundary_after(index) else 0
        groups.append(
            GroupPlan(
                layers=(first, last),
                file=sum(file.get(layer, 0) for layer in layers),
                weights=parts.weights(layers),
                fullest=parts.fullest(layers, gpus),
                forward=parts.forward,
                sites=taken * batch_size * tokens,
                boundary=left * batch_size * tokens,
                gathered=(taken + left) * layout.chunk_tokens if gathers else 0,
            )
        )
    return Plan(tuple(groups), parts, layout, architecture.skipped, gpus)


def bytes_of(text: str) -> int:
    """`24GiB` in bytes."""
    unit = text[-3:]
    return int(float(text[:-3]) * UNITS[unit])


def shown(size: int) -> str:
    """Bytes as a reader wants them: `57.1 GiB`."""
    for unit in ("TiB", "GiB", "MiB"):
        if size >= UNITS[unit]:
            return f"{size / UNITS[unit]:.1f} {unit}"
    return f"{size / UNITS['KiB']:.1f} KiB"


def available(device: str) -> tuple[int | None, str]:
    """Bytes that a device can still give, and what it is called; None where it does not say.

    Args:
        device: `cuda:0`, `mps` or `cpu`.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0]), torch.cuda.get_device_name(device)
    known = [size for size in (_machine_memory(), _control_group_memory()) if size is not None]
    return min(known, default=None), "this machine"


def _machine_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    kib = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kib[0] * 2**10 if kib else None


def _control_group_memory() -> int | None:
    """What a container or a batch system leaves to this process."""
    folder = Path("/sys/fs/cgroup")
    try:
        most = (folder / "memory.max").read_text("ascii").strip()
        used = (folder / "memory.current").read_text("ascii").strip()
    except OSError:
        return None
    return int(most) - int(used) if most.isdigit() else None


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
