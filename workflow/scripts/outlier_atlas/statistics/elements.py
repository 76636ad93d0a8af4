"""Low-bit number formats, without the functions of torch that round to them (`formats.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Element:
    """A low-bit number format without infinities.

    Attributes:
        mantissa: number of mantissa bits.
        smallest: exponent of the smallest normal number.
        exponent: exponent of the largest number.
        largest: the largest number.
    """

    mantissa: int
    smallest: int
    exponent: int
    largest: float

    def round_(self, values: Tensor) -> Tensor:
        """Round values in place to the nearest numbers of the format, ties to even, saturating.

        Adding 1.5 x 2^k to a float32 and subtracting it again rounds to multiples of 2^(k - 23).
        """
        import torch  # detection needs only the numbers

        values = values.clamp_(-self.largest, self.largest)
        bits = values.view(torch.int32) & 0x7F800000
        shift = bits.clamp_(min=self.least).add_(self.shift).view(torch.float32)
        return values.add_(shift).sub_(shift)

    @property
    def least(self) -> int:
        """Bits of the smallest normal number in float32."""
        return (self.smallest + 127) << 23

    @property
    def shift(self) -> int:
        """Difference between a number's exponent bits and the bits of the 1.5 x 2^k of `round_`."""
        return ((23 - self.mantissa) << 23) | 0x400000


INT8 = Element(mantissa=6, smallest=6, exponent=6, largest=127.0)
"""Symmetric INT8 without -128. The spacing is 1 everywhere, as `smallest` is `exponent`."""
E4M3 = Element(mantissa=3, smallest=-6, exponent=8, largest=448.0)
E2M1 = Element(mantissa=1, smallest=0, exponent=2, largest=6.0)

FORMATS: dict[tuple[str, str], Element] = {
    ("int8", "tensor"): INT8,
    ("int8", "token"): INT8,
    ("int8", "channel"): INT8,
    ("fp8_e4m3", "tensor"): E4M3,
    ("mxfp8", "block of 32"): E4M3,
    ("mxfp4", "block of 32"): E2M1,
    ("nvfp4", "block of 16"): E2M1,
}
"""Elements of the formats, by their name and by the values that share a scale."""
