"""Single weights of down projections, as super weights are asked for: W[output, input]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlier_atlas.loading.matrices import Checkpoint, Matrix
from outlier_atlas.roles.cached_architecture import described
from outlier_atlas.roles.decoder_weights import StoredWeight, stored_weights

Entry = tuple[int, int | None, int, int]
"""Layer, routed expert (None where the layer has a down projection of its own), row (output
channel) and column (input channel)."""


def down_projection_entries(
    record: Mapping[str, Any],
    resources: Path,
    trust_remote_code: bool,
    places: Sequence[Entry],
) -> list[float | None]:
    """Weights of the layers' down projections, read from the checkpoint a row at a time.

    Args:
        record: of the model.
        places: of the weights.

    Returns:
        As many values, as the checkpoint has them; of quantized weights dequantized into float32.
        None where a layer has no projection whose input is `mlp_hidden`, or an expert has no down
        projection that is known.

    Raises:
        ValueError: the model is not there any more, or a weight is quantized in a way that cannot
            be undone.
    """
    folder, config, architecture = described(record, resources, trust_remote_code)
    files = record["files"]
    weights = stored_weights(folder, files, config, architecture, trust_remote_code)
    dense = {weight.layer: weight for weight in weights if weight.site == "mlp_hidden"}
    # Stored apart, an expert has a weight of its own; fused, all of a layer have one.
    routed = {(weight.layer, weight.expert): weight for weight in weights if weight.down}
    values: list[float | None] = []
    with Checkpoint(folder, files, config) as checkpoint:
        for layer, expert, row, column in places:
            if expert is None:
                weight = dense.get(layer)
            else:
                weight = routed.get((layer, expert), routed.get((layer, None)))
            matrix = weight and _matrix(checkpoint, weight, expert)
            values.append(matrix.take(row, row + 1)[0, column].item() if matrix else None)
    return values


def _matrix(checkpoint: Checkpoint, weight: StoredWeight, expert: int | None) -> Matrix | None:
    """The matrix of a weight; of fused experts that of one."""
    each = checkpoint.matrices(weight)
    return next((matrix for matrix in each if matrix.expert == expert), None)
