"""The memory that a job of one layer group takes on its device and on the host.

The Snakefile imports this module, so it imports no large packages. The Snakefile reads plans from
the record of the store, and requests memory from a scheduler accordingly
(`scheduler_resources.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from outlier_atlas.files import read_record
from outlier_atlas.plan.queue_limits import HOST_QUEUE_BYTES, QUEUE_BYTES

MIB = 2**20

PROCESS_BYTES = 330 * MIB
"""Memory of Python, torch and transformers before a model is loaded; measured."""

KERNEL_BYTES = 48 * MIB
"""Memory of a mixture's prepared matrix products on the CPU (`few_kernels`), and of the heap
between them: 0 to 100 MiB on mixtures of 16 to 64 experts, by dtype and number of tokens."""

HEAP_BYTES = 16 * MIB
"""Memory that a forward pass on the CPU has freed and glibc keeps (`loading/malloc_tuning.py`)."""

ON_DEVICE = 8.25
"""Memory in which torch summarizes a tile on a device, in float32 tiles: the tile, its magnitudes,
three copies in float64, and a mask."""

COMPILER_BYTES = 120 * MIB
"""Memory of numba when it imports and compiles the loops that summarize a tile on the host, or that
convert quantized weights: 114 MiB measured in the first job of an installation, 36 MiB if compiled
loops are on disk."""

ENOUGH_TOKENS = {True: 1024, False: 16384}
"""Tokens of a batch beyond which a larger batch gains nothing, on the CPU and on a device."""

RECORDED = "memory"
"""Key of the store's record: the plan of each layer group, in batches of one sequence."""


@dataclass(frozen=True)
class GroupPlan:
    """The memory of one layer group, in bytes.

    Attributes:
        layers: first and last layer.
        file: weights of the group in the checkpoint's files.
        weights: weights of the group in memory.
        fullest: weights on the device with the most weights.
        fused: the largest tensor that is put together from pieces, without the pieces in memory.
        forward: the forward pass of a batch, without the weights; None if it is not known.
        losses: the logits of a piece of a sequence, if losses are computed.
        entering: the residual stream that a batch begins with, in float32; 0 for token ids.
        sites: the captured activations of a batch, in the dtype of the forward pass.
        boundary: the residual stream of a batch that is stored for the next layer group.
        gathered: chunks that wait for further sequences before they are complete.
        written: float32 values and compressed chunks in the writing threads.
        summarized: tiles in the writing threads that are not stored, in float32.
        quantized: whether compiled loops convert the weights while they are loaded.
    """

    layers: tuple[int, int]
    file: int
    weights: int
    fullest: int
    fused: int
    forward: int | None
    losses: int
    entering: int
    sites: int
    boundary: int
    gathered: int
    written: int
    summarized: int
    quantized: bool

    def batched(self, sequences: int) -> GroupPlan:
        """Return the plan for batches of `sequences`; this plan must be for batches of one."""
        # An upper bound: everything but the mask grows with the sequences.
        forward = None if self.forward is None else self.forward * sequences
        return replace(
            self,
            forward=forward,
            entering=self.entering * sequences,
            sites=self.sites * sequences,
            boundary=self.boundary * sequences,
        )

    @property
    def _loading(self) -> int:
        """Host memory that loading takes in addition to the weights, and what remains of it."""
        return COMPILER_BYTES if self.quantized else 0

    @property
    def _summarizing(self) -> int:
        """Host memory in which tiles are summarized."""
        return self.summarized + (COMPILER_BYTES if self.summarized or self.quantized else 0)

    @property
    def _working(self) -> int:
        """Memory of a forward pass, without the weights; losses are computed when it is over.

        The memory includes the input of the next batch and a tensor in the shape of the embeddings,
        both in the dtype of the forward pass.
        """
        return max(self.forward or 0, self.losses) + self.entering

    def _streaming(self, bound: int) -> int:
        """Return the host memory of queued and written values, and of the input of a batch."""
        waiting = min(bound, self.sites + self.boundary)
        return waiting + self.gathered + self.written + 2 * self.entering

    @property
    def device(self) -> int:
        """Peak memory of a device: weights, forward pass, and copies in transfer to the host."""
        waiting = min(QUEUE_BYTES, self.sites + self.boundary)
        return self.fullest + self._working + int(ON_DEVICE * self.summarized) + waiting

    @property
    def host(self) -> int:
        """Peak host memory of a process whose forward pass is on a device."""
        process = PROCESS_BYTES + self._loading
        return process + max(self.weights + self.fused, self._streaming(QUEUE_BYTES))

    @property
    def host_alone(self) -> int:
        """Peak host memory of a process whose forward pass is also on the host."""
        kernels = KERNEL_BYTES if self.fused else 0
        streaming = self._working + self._streaming(HOST_QUEUE_BYTES) + self._summarizing
        streaming += kernels + HEAP_BYTES
        return PROCESS_BYTES + self.weights + max(self.fused + self._loading, streaming)

    @property
    def unified(self) -> int:
        """Peak of memory that the host and the device share, as on Apple silicon.

        The weights count once, because they leave the host tensor by tensor. Waiting values also
        count once.
        """
        streaming = self._working + self._streaming(QUEUE_BYTES) + self._summarizing
        return PROCESS_BYTES + self.weights + max(self.fused + self._loading, streaming)


def record(groups: Sequence[GroupPlan]) -> dict[str, Any]:
    """Return the part of a store's record that holds plans, in batches of one sequence."""
    return {RECORDED: [asdict(group) for group in groups]}


def recorded(store_record: Path) -> list[GroupPlan]:
    """Return the plan of each layer group from a store's record, in batches of one sequence.

    The list is empty if the record is damaged or of an older version. In that case the record is
    rewritten before a job runs.

    Raises:
        FileNotFoundError: there is no record.
    """
    try:
        return [GroupPlan(**plan) for plan in read_record(store_record)[RECORDED]]
    except (ValueError, KeyError, TypeError):
        return []
