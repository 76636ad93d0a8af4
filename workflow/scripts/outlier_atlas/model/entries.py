"""Single weights of down projections, as super weights are asked for: W[output, input]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlier_atlas.model.matrices import Checkpoint
from outlier_atlas.model.recorded import described
from outlier_atlas.model.stored import stored_weights


def down_projection_entries(
    record: Mapping[str, Any],
    resources: Path,
    trust_remote_code: bool,
    places: Sequence[tuple[int, int, int]],
) -> list[float | None]:
    """Weights of the layers' down projections, read from the checkpoint a row at a time.

    Args:
        record: of the model.
        places: layer, row (output channel) and column (input channel) of each.

    Returns:
        As many values, as the checkpoint has them; of quantized weights dequantized into float32.
        None where a layer has no projection whose input is `mlp_hidden`, such as a mixture.

    Raises:
        ValueError: the model is not there any more, or a weight is quantized in a way that cannot
            be undone.
    """
    folder, config, architecture = described(record, resources, trust_remote_code)
    files = record["files"]
    weights = stored_weights(folder, files, config, architecture, trust_remote_code)
    down = {weight.layer: weight for weight in weights if weight.site == "mlp_hidden"}
    values: list[float | None] = []
    with Checkpoint(folder, files, config) as checkpoint:
        for layer, row, column in places:
            if layer not in down:
                values.append(None)
                continue
            (matrix,) = checkpoint.matrices(down[layer])
            values.append(matrix.take(row, row + 1)[0, column].item())
    return values
