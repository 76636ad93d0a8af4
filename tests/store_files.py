"""The files of a run's chunks, and which of them a stage wrote."""

from pathlib import Path

from pipeline import Run

from outlier_atlas.store.move_chunks import ASIDE

Files = dict[str, tuple[int, bytes]]


def chunk_files(run: Run) -> Files:
    """Time and bytes of each chunk's file, by its path in the run's folder.

    Of layers that have no row now, too: `store/move_chunks.py` lays them aside.
    """
    paths = (p for at in ("c", ASIDE) for p in run.folder.glob(f"*.zarr/*/{at}/*/**/*"))
    return {
        str(path.relative_to(run.folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in paths
        if path.is_file()
    }


def written(before: Files, after: Files) -> set[str]:
    """Those that are not the files that they were; one that was moved is the same file."""
    there = set(before.values())
    return {path for path in after if after[path] not in there}


def site_chunks(sites: tuple[str, ...], rows: range, chunks: range) -> set[str]:
    """Paths of chunks of sites, by their place in the array."""
    return {
        str(Path("activations.zarr") / site / "c" / f"{row}" / f"{chunk}" / "0")
        for site in sites
        for row in rows
        for chunk in chunks
    }
