"""Names of array dimensions, one for each length, as xarray requires."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from outlier_atlas.files import DamagedFileError, write_whole
from outlier_atlas.settings.sites import DIMENSIONS, SITES, Site
from outlier_atlas.store.layout import Layout, parts
from outlier_atlas.store.run_files import RunFiles

Widths = Mapping[int, int]
"""Number of channels of a site, by layer."""


def own_names(widths: Mapping[Site, Widths], hidden_size: int) -> dict[str, str]:
    """Return, by site, the names of last dimensions that cannot have the declared name.

    Two sites share a name if they have equal widths in every layer that has both. All sites of the
    model are compared in a fixed order, so the names do not depend on the sites of a run.

    Args:
        widths: widths of all sites of the model.
        hidden_size: number of channels of the residual stream.
    """
    layers = {layer for of_site in widths.values() for layer in of_site}
    sharing: dict[str, list[Widths]] = {"channel": [dict.fromkeys(layers, hidden_size)]}
    own: dict[str, str] = {}
    for site in SITES:
        if site not in widths:
            continue
        others = sharing.setdefault(DIMENSIONS[site], [])
        if all(_agree(widths[site], other) for other in others):
            others.append(widths[site])
        else:
            own[site] = f"{site}_channel"
    return own


def _agree(first: Widths, second: Widths) -> bool:
    return all(first[layer] == second[layer] for layer in first.keys() & second.keys())


def rename(run: RunFiles, layout: Layout) -> int:
    """Rename the dimensions of an older run's arrays; chunks do not change.

    Each array is renamed with one write. An array with current names is not written. After a kill
    between two arrays, the next call renames the others.

    Returns:
        The number of arrays that were renamed.

    Raises:
        DamagedFileError: the metadata of an array is damaged.
    """
    return sum(_rename(path, names) for path, names in _arrays(run, layout) if path.is_file())


def _arrays(run: RunFiles, layout: Layout) -> Iterator[tuple[Path, list[str]]]:
    # Arrays of sites that are no longer configured may exist until `clear_up`.
    for site in SITES:
        names = ["layer", "token", layout.dimension(site)]
        yield from ((run.activations / p.name / "zarr.json", names) for p in parts(site))
    boundaries = run.boundaries.glob("*/zarr.json")
    yield from ((path, ["token", "channel"]) for path in sorted(boundaries))


def _rename(path: Path, names: list[str]) -> bool:
    try:
        metadata = json.loads(path.read_text("utf-8"))
        current = metadata["dimension_names"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(path, str(error)) from error
    if current == names:
        return False
    write_whole(path, json.dumps(metadata | {"dimension_names": names}, indent=2).encode())
    return True
