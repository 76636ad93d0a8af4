"""Single entries of down projections, as super weights are named: W[output, input]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlier_atlas.loading.matrices import Checkpoint, Matrix
from outlier_atlas.roles.cached_architecture import described
from outlier_atlas.roles.decoder_weights import StoredWeight, stored_weights

Entry = tuple[int, int | None, int, int]
"""Layer, routed expert, row and column of an entry.

The expert is None for the down projection of a dense MLP. Rows are output channels, columns are
input channels.
"""


def down_projection_entries(
    record: Mapping[str, Any],
    resources: Path,
    trust_remote_code: bool,
    entries: Sequence[Entry],
) -> list[float | None]:
    """Return entries of the layers' down projections, reading one row of the checkpoint at a time.

    Args:
        record: record of the model.
        resources: folder that the record is relative to.
        trust_remote_code: whether code of the checkpoint may run.
        entries: the entries to read.

    Returns:
        The value of each entry as it is stored; quantized weights are dequantized into float32.
        None if a layer has no projection whose input is `mlp_hidden`, or an expert has no known
        down projection.

    Raises:
        ValueError: the model's folder no longer exists, or a weight is quantized in a way that is
            not supported.
    """
    folder, config, architecture = described(record, resources, trust_remote_code)
    files = record["files"]
    weights = stored_weights(folder, files, config, architecture, trust_remote_code)
    dense = {weight.layer: weight for weight in weights if weight.site == "mlp_hidden"}
    # A weight belongs to one expert if experts are stored separately, or to all if they are fused.
    routed = {
        (weight.layer, weight.expert): weight for weight in weights if weight.is_down_projection
    }
    values: list[float | None] = []
    with Checkpoint(folder, files, config) as checkpoint:
        for layer, expert, row, column in entries:
            if expert is None:
                weight = dense.get(layer)
            else:
                weight = routed.get((layer, expert), routed.get((layer, None)))
            matrix = weight and _matrix(checkpoint, weight, expert)
            values.append(matrix.take(row, row + 1)[0, column].item() if matrix else None)
    return values


def _matrix(checkpoint: Checkpoint, weight: StoredWeight, expert: int | None) -> Matrix | None:
    """Return the matrix of a weight, or of one of its fused experts; None if there is none."""
    matrices = checkpoint.matrices(weight)
    return next((matrix for matrix in matrices if matrix.expert == expert), None)
