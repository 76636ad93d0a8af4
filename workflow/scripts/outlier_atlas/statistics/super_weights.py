"""The largest output of a down projection and the largest input at the same token, which say where
a super weight (Yu et al. 2024, arXiv 2411.07191) may be."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from outlier_atlas.statistics.codes import Float32, Int32, Int64
from outlier_atlas.statistics.summary import Summary

TOKENS = 64
"""Tokens that are looked at together, where a whole sequence is at hand."""


@dataclass(frozen=True)
class Spike:
    """The largest output of a down projection, and the largest input at the same token.

    Attributes:
        row, column: channel of the output, and of the input.
        output, input: largest in |x|, with their signs.
        token: index along the token axis, of both.
    """

    row: int
    column: int
    output: float
    input: float
    token: int

    def above(self, threshold: float) -> bool:
        """Whether |input| and |output| are both > a threshold."""
        return min(abs(self.input), abs(self.output)) > threshold

    @property
    def order(self) -> tuple[float, int]:
        """The largest |output| comes first; of equals the earliest token."""
        return -abs(self.output), self.token


@dataclass(frozen=True)
class TokenPeaks:
    """Tokens of a site: of each the finite value largest in |x|, and its channel."""

    tokens: Int64
    values: Float32
    channels: Int32

    @classmethod
    def of(cls, values_TC: torch.Tensor, start: int) -> TokenPeaks:
        """Those of all tokens of (token, channel), numbered from `start`."""
        parts = []
        for first in range(0, len(values_TC), TOKENS):  # of a long sequence no large copies
            x = values_TC[first : first + TOKENS]
            magnitudes = torch.where(x.isfinite(), x.abs(), -1)
            channels = magnitudes.argmax(1, keepdim=True)
            parts.append((x.gather(1, channels)[:, 0].float(), channels[:, 0].to(torch.int32)))
        values, found = (torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True))
        tokens = np.arange(start, start + len(values), dtype=np.int64)
        return cls(tokens, values, found)


@dataclass
class LargestOutput:
    """Accumulates summaries of the input and the output of one layer's down projection.

    Exact, in any order and split: a sequence is decided on when all of its tokens have been seen on
    both sides. Memory is two numbers for each token of the sequences that are incomplete.

    Attributes:
        starts: index of each sequence's first token, and the number of tokens, ascending.
        spike: of the finite values seen; None where there is none.
    """

    starts: Int64
    spike: Spike | None = None
    _inputs: dict[int, list[TokenPeaks]] = field(default_factory=dict)
    _outputs: dict[int, list[TokenPeaks]] = field(default_factory=dict)
    _seen: dict[int, int] = field(default_factory=dict)

    def take_input(self, summary: Summary) -> None:
        """Take the summary of a tile of `mlp_hidden`."""
        self._take(True, summary)

    def take_output(self, summary: Summary) -> None:
        """Take the summary of a tile of `down_proj_out`."""
        self._take(False, summary)

    def _take(self, is_input: bool, summary: Summary) -> None:
        tokens = summary.start + summary.token.astype(np.int64)
        peaks = TokenPeaks(tokens, summary.token_value, summary.token_channel)
        self.take_peaks(is_input, summary.sequence, summary.tokens, peaks)

    def take_peaks(self, is_input: bool, sequence: int, tokens: int, peaks: TokenPeaks) -> None:
        """Take some tokens of a sequence.

        Args:
            is_input: whether they are of the input, and not of the output.
            tokens: how many, with those that are left out.
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
        """Keep another spike if its output is larger."""
        if other and (self.spike is None or other.order < self.spike.order):
            self.spike = other


def spike_of(inputs: TokenPeaks, outputs: TokenPeaks) -> Spike | None:
    """The spike of some tokens; None where none of them has a finite input and output.

    Args:
        inputs, outputs: of the same tokens, in order.
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
