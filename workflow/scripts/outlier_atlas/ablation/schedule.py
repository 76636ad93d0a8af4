"""Which variant has to run through which layer group, given what lies on disk already."""

from __future__ import annotations

from collections.abc import Collection, Mapping

Place = tuple[str, int]
"""A variant and a boundary: its residual stream before layer group 1, 2, ...; behind the last layer
group, its losses."""


def schedule(
    unaltered: str, starts: Mapping[str, int], groups: int, there: Collection[Place]
) -> list[list[str]]:
    """For each layer group, the variants to run through it, in their order.

    A variant runs from the layer group of its first altered layer, at the boundary that the
    unaltered model leaves before it; the layers below compute what the unaltered model does. It
    goes on where its own residual stream lies, and does not run where its losses are there.

    Args:
        unaltered: key of the unaltered model, which is among the variants.
        starts: of each variant the layer group of its first altered layer.
        groups: number of layer groups.
        there: what lies on disk.
    """
    ranges = {key: range(0) for key in starts}
    boundaries = set()
    for key, start in starts.items():
        if (key, groups) in there:
            continue
        own = [b for b in range(start + 1, groups) if (key, b) in there]
        ranges[key] = range(max(own, default=start), groups)
        if not own and start:
            boundaries.add(start)
    lacking = [b for b in boundaries if (unaltered, b) not in there]
    again = {group for b in lacking for group in _towards(unaltered, b, there)}
    return [
        [key for key in starts if group in ranges[key] or (key == unaltered and group in again)]
        for group in range(groups)
    ]


def _towards(unaltered: str, boundary: int, there: Collection[Place]) -> range:
    """Return the layer groups that the unaltered model runs through to leave a boundary."""
    own = [b for b in range(1, boundary) if (unaltered, b) in there]
    return range(max(own, default=0), boundary)
