"""What a job of one layer group takes of its device and of the host.

Imports nothing heavy: the Snakefile asks a scheduler for so much (`plan/scheduler_resources.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from outlier_atlas.plan.queue_limits import HOST_QUEUE_BYTES, QUEUE_BYTES

MIB = 2**20

PROCESS_BYTES = 330 * MIB
"""What Python, torch and transformers take of a job's memory before there is a model; measured."""

KERNEL_BYTES = 48 * MIB
"""What a mixture's prepared matrix products take on the CPU (`few_kernels`), and the heap between
them: between 0 and 100 on mixtures of 16 to 64 experts, by dtype and number of tokens."""

HEAP_BYTES = 16 * MIB
"""Memory that glibc keeps of what a forward pass on the CPU has freed; see
`loading/malloc_tuning.py`."""

ON_DEVICE = 8.25
"""What torch has of a tile while it summarizes it on a device, in float32 tiles: the tile, its
magnitudes, three of it in float64, and a mask."""

COMPILER_BYTES = 120 * MIB
"""What numba takes to import and compile the loops that summarize a tile on the host: 114 measured,
in the first job of an installation; 36 where they lie compiled on disk."""


@dataclass(frozen=True)
class GroupPlan:
    """What one layer group takes, in bytes.

    Attributes:
        layers: first and last.
        file: of its weights in the checkpoint's files.
        weights: of its weights in memory.
        fullest: of those on the fullest of its devices.
        fused: of the largest tensor that is put together from pieces, without those loaded already.
        forward: of the forward pass of a batch, without the weights; None where it is not known.
        losses: of the logits of a piece of a sequence, where losses are taken.
        entering: of the residual stream that a batch begins with, in float32; 0 for token ids.
        sites: of the activations of a batch that are taken, in the dtype of the forward pass.
        boundary: of the residual stream of a batch that is left to the next layer group.
        gathered: of chunks that sequences fill only in part, until they are complete.
        written: of float32 values and compressed chunks in the hands of the writing threads.
        summarized: of tiles in their hands that are not stored, in float32.
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

    def batched(self, sequences: int) -> GroupPlan:
        """The same in batches of so many sequences, where it is that of one."""
        # At most in proportion: all but the mask grows with sequences.
        forward = None if self.forward is None else self.forward * sequences
        return replace(
            self,
            forward=forward,
            entering=self.entering * sequences,
            sites=self.sites * sequences,
            boundary=self.boundary * sequences,
        )

    @property
    def _summarizing(self) -> int:
        """On the host."""
        return self.summarized + (COMPILER_BYTES if self.summarized else 0)

    @property
    def _working(self) -> int:
        """Without the weights: losses are taken when the forward pass is over.

        The next batch's input is there already, and something in the shape of embeddings, both in
        the dtype of the forward pass.
        """
        return max(self.forward or 0, self.losses) + self.entering

    def _streaming(self, bound: int) -> int:
        """On the host: what waits, what is written, and the next batch's input as it is read."""
        waiting = min(bound, self.sites + self.boundary)
        return waiting + self.gathered + self.written + 2 * self.entering

    @property
    def device(self) -> int:
        """The most on a device: weights, forward pass, and copies on their way to the host."""
        waiting = min(QUEUE_BYTES, self.sites + self.boundary)
        return self.fullest + self._working + int(ON_DEVICE * self.summarized) + waiting

    @property
    def host(self) -> int:
        """The most in the memory of the host, of a process whose forward pass is on a device."""
        return PROCESS_BYTES + max(self.weights + self.fused, self._streaming(QUEUE_BYTES))

    @property
    def host_alone(self) -> int:
        """The most in the memory of the host, of a process whose forward pass is there, too."""
        kernels = KERNEL_BYTES if self.fused else 0
        streaming = self._working + self._streaming(HOST_QUEUE_BYTES) + self._summarizing
        streaming += kernels + HEAP_BYTES
        return PROCESS_BYTES + self.weights + max(self.fused, streaming)

    @property
    def unified(self) -> int:
        """The most in a memory that the host and the device share, as on Apple silicon.

        The weights are there once, for they leave the host tensor by tensor; and so is what waits.
        """
        streaming = self._working + self._streaming(QUEUE_BYTES) + self._summarizing
        return PROCESS_BYTES + self.weights + max(self.fused, streaming)
