"""The largest output of a down projection and the largest input at the same token.

Their channels are the row and the column of a possible super weight (Yu et al. 2024, arXiv
2411.07191).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from outlier_atlas.statistics.codes import Float32, Int32, Int64
from outlier_atlas.statistics.summary import Summary

if TYPE_CHECKING:
    import torch

TOKENS = 64
"""Number of tokens of a whole sequence that are processed together."""


@dataclass(frozen=True)
class Spike:
    """The largest output of a down projection, and the largest input at the same token.

    Attributes:
        row, column: channel of the output and of the input.
        output, input: the values largest in |x|, with their signs.
        token: index of both along the token axis.
    """

    row: int
    column: int
    output: float
    input: float
    token: int

    def above(self, threshold: float) -> bool:
        """Return whether |input| and |output| both exceed a threshold."""
        return min(abs(self.input), abs(self.output)) > threshold

    @property
    def order(self) -> tuple[float, int]:
        """Sort key: the largest |output| comes first, and among equals the earliest token."""
        return -abs(self.output), self.token


@dataclass(frozen=True)
class TokenPeaks:
    """The finite values largest in |x| of some tokens of a site, with their channels."""

    tokens: Int64
    values: Float32
    channels: Int32

    @classmethod
    def of(cls, values_TC: torch.Tensor, start: int) -> TokenPeaks:
        """Compute the peaks of all tokens of (token, channel), which are numbered from `start`."""
        import torch  # detection takes the peaks from summaries, without torch

        parts = []
        for first in range(0, len(values_TC), TOKENS):  # avoids large copies of a long sequence
            x = values_TC[first : first + TOKENS]
            magnitudes = torch.where(x.isfinite(), x.abs(), -1)
            channels = magnitudes.argmax(1, keepdim=True)
            parts.append((x.gather(1, channels)[:, 0].float(), channels[:, 0].to(torch.int32)))
        values, peaks = (torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True))
        tokens = np.arange(start, start + len(values), dtype=np.int64)
        return cls(tokens, values, peaks)


@dataclass
class LargestOutput:
    """An accumulator of summaries of the input and the output of one layer's down projection.

    It is exact, in any order and split. A sequence is evaluated when both sides of all its tokens
    were added. Memory is two numbers for each token of the incomplete sequences.

    Attributes:
        starts: (sequences + 1,): index of each sequence's first token, and the number of tokens.
        spike: the spike of the finite values so far; None if there is none.
    """

    starts: Int64
    spike: Spike | None = None
    _inputs: dict[int, list[TokenPeaks]] = field(default_factory=dict)
    _outputs: dict[int, list[TokenPeaks]] = field(default_factory=dict)
    _seen: dict[int, int] = field(default_factory=dict)

    def take_input(self, summary: Summary) -> None:
        """Add the summary of a tile of `mlp_hidden`."""
        self._take(True, summary)

    def take_output(self, summary: Summary) -> None:
        """Add the summary of a tile of `down_proj_out`."""
        self._take(False, summary)

    def _take(self, is_input: bool, summary: Summary) -> None:
        tokens = summary.start + summary.token.astype(np.int64)
        peaks = TokenPeaks(tokens, summary.token_value, summary.token_channel)
        self.take_peaks(is_input, summary.sequence, summary.tokens, peaks)

    def take_peaks(self, is_input: bool, sequence: int, tokens: int, peaks: TokenPeaks) -> None:
        """Add some tokens of a sequence.

        Args:
            is_input: whether they are tokens of the input instead of the output.
            sequence: index of the sequence.
            tokens: number of tokens, including excluded ones.
            peaks: peaks of the included tokens.
        """
        parts = self._inputs if is_input else self._outputs
        parts.setdefault(sequence, []).append(peaks)
        self._seen[sequence] = self._seen.get(sequence, 0) + tokens
        first, stop = self.starts[sequence : sequence + 2]
        if self._seen[sequence] == 2 * (stop - first):
            del self._seen[sequence]
            inputs, outputs = self._inputs.pop(sequence), self._outputs.pop(sequence)
            self.merge_spike(spike_of(_joined(inputs), _joined(outputs)))

    def merge_spike(self, other: Spike | None) -> None:
        """Replace the spike by another one if its |output| is larger."""
        if other and (self.spike is None or other.order < self.spike.order):
            self.spike = other


def spike_of(inputs: TokenPeaks, outputs: TokenPeaks) -> Spike | None:
    """Return the spike of some tokens; None if no token has a finite input and a finite output.

    Args:
        inputs, outputs: peaks of the same tokens in the same order.
    """
    assert np.array_equal(inputs.tokens, outputs.tokens)
    finite = np.isfinite(inputs.values) & np.isfinite(outputs.values)
    if not finite.any():
        return None
    at = int(np.where(finite, np.abs(outputs.values), np.float32(-1)).argmax())
    return Spike(
        row=int(outputs.channels[at]),
        column=int(inputs.channels[at]),
        output=float(outputs.values[at]),
        input=float(inputs.values[at]),
        token=int(outputs.tokens[at]),
    )


def _joined(parts: list[TokenPeaks]) -> TokenPeaks:
    tokens = np.concatenate([part.tokens for part in parts])
    order = np.argsort(tokens, kind="stable")
    return TokenPeaks(
        tokens[order],
        np.concatenate([part.values for part in parts])[order],
        np.concatenate([part.channels for part in parts])[order],
    )
