"""Super weights (Yu et al. 2024, arXiv 2411.07191): where a down projection has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from outlier_atlas.statistics.magnitudes import Magnitudes


@dataclass(frozen=True)
class SuperWeight:
    """The largest input and output of a layer's down projection, and the weight between them.

    Attributes:
        layer: the layer.
        row, column: of the weight: channel of the output, and of the input.
        input, output: largest in |x|, with their signs.
        input_token, output_token: indices along the token axis.
        passes: whether both are above the threshold.
    """

    layer: int
    row: int
    column: int
    input: float
    output: float
    input_token: int
    output_token: int
    passes: bool


def super_weights(
    inputs: Mapping[int, Magnitudes], outputs: Mapping[int, Magnitudes], threshold: float
) -> list[SuperWeight]:
    """One for each layer that has finite inputs and outputs, ascending.

    Args:
        inputs, outputs: of the down projection, by layer.
        threshold: a super weight's |input| and |output| are both > this.
    """
    return [
        _of_layer(layer, inputs[layer], outputs[layer], threshold)
        for layer in sorted(inputs)
        if inputs[layer].top and outputs[layer].top
    ]


def _of_layer(layer: int, into: Magnitudes, out: Magnitudes, threshold: float) -> SuperWeight:
    column, row = into.largest_channel, out.largest_channel
    assert column is not None and row is not None, "there are finite values"
    return SuperWeight(
        layer=layer,
        row=row,
        column=column,
        input=float(into.maxima[column]),
        output=float(out.maxima[row]),
        input_token=int(into.tokens[column]),
        output_token=int(out.tokens[row]),
        passes=min(into.top[0], out.top[0]) > threshold,
    )
