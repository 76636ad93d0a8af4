"""Schedule of variants over layer groups, given the results on disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping

Place = tuple[str, int]
"""A variant and a boundary.

Boundary 1, 2, ... is the residual stream before that layer group. The boundary after the last layer
group is the losses.
"""


def schedule(
    unaltered: str, starts: Mapping[str, int], groups: int, on_disk: Collection[Place]
) -> list[list[str]]:
    """Return the variants to run through each layer group, in order.

    A variant starts at the layer group of its first altered layer, with the residual stream of the
    unaltered model, because lower layers are unaltered. It continues from its own last residual
    stream on disk. A variant with losses on disk does not run.

    Args:
        unaltered: key of the unaltered model, which is one of the variants.
        starts: layer group of the first altered layer, by variant.
        groups: number of layer groups.
        on_disk: residual streams and losses on disk.
    """
    ranges = {key: range(0) for key in starts}
    boundaries = set()
    for key, start in starts.items():
        if (key, groups) in on_disk:
            continue
        own = [b for b in range(start + 1, groups) if (key, b) in on_disk]
        ranges[key] = range(max(own, default=start), groups)
        if not own and start:
            boundaries.add(start)
    lacking = [b for b in boundaries if (unaltered, b) not in on_disk]
    again = {group for b in lacking for group in _towards(unaltered, b, on_disk)}
    return [
        [key for key in starts if group in ranges[key] or (key == unaltered and group in again)]
        for group in range(groups)
    ]


def _towards(unaltered: str, boundary: int, on_disk: Collection[Place]) -> range:
    """Return the layer groups that the unaltered model must run to write a boundary."""
    own = [b for b in range(1, boundary) if (unaltered, b) in on_disk]
    return range(max(own, default=0), boundary)
