"""One bit of a finished run is flipped, then the ordinary command runs: what becomes of it."""

import copy
import math
import os
import random
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import commanded
import forked
from commanded import Done, Project

from outlier_atlas.store.run_files import COMMITS

RUN = "results/mine"
CONFIG: dict[str, Any] = {
    "run": {"name": "mine"},
    "model": {"source": "./model"},
    "dataset": {
        "source": "./texts",
        "sequences": 4,
        "sequence_length": 24,
        "packing": "document",
    },
    # Chunks that end within a sequence, and one that both sequence shards write to.
    "extraction": {
        "sites": ["mlp_in", "resid_post"],
        "store": ["resid_post"],
        "layer_groups": 2,
        "sequence_shards": 2,
        "perplexity": True,
        "verify": "never",
        "advanced": {"chunk_tokens": 24, "outlier_floor": 0.5, "massive_floor": 0.5},
    },
    "detection": {
        "llm_int8": {"threshold": 1.0},
        "massive_activations": {"absolute": 2.0, "ratio": 3.0},
        "bootstrap": {"resamples": 100},
    },
    "ablation": {"sequences": 1, "interventions": ["mean"], "random_draws": 1, "most": 1},
    "execution": {"device": "cpu", "threads": 1, "batch_size": 1},
}
CHANGES: dict[str, dict[str, Any]] = {
    "detection": {"detection": {"llm_int8": {"threshold": 1.5}}},
    "extraction": {"extraction": {"store": ["mlp_in", "resid_post"]}},
    "weights": {"detection": {"smoothquant": {"alpha": 0.7}}},
    "ablation": {"ablation": {"random_draws": 2}},
    "report": {"report": {"rows": 7}},
}
"""What a configuration is changed by, so that jobs of that stage and those after it run."""

KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "zarr.json": (rf"{RUN}/\w+\.zarr/.*zarr\.json", ("detection", "extraction")),
    "coordinates": (
        rf"{RUN}/activations\.zarr/(layer|token_id|sequence|position)/c/.*",
        ("detection", "extraction"),
    ),
    "boundary chunks": (rf"{RUN}/boundaries\.zarr/.*", ("extraction",)),
    "array chunks": (rf"{RUN}/activations\.zarr/.*", ("detection", "extraction", "ablation")),
    "summaries, unstored": (rf"{RUN}/summaries/\w+@.*", ("detection", "extraction", "ablation")),
    "summaries, stored": (rf"{RUN}/summaries/.*", ("detection", "ablation")),
    "commits": (rf"{RUN}/manifests/commits/.*", ("detection", "extraction")),
    "manifests": (rf"{RUN}/manifests/extraction/.*", ("detection", "extraction")),
    "records of inputs": (r"(results/mine/manifests|resources)/inputs/.*", tuple(CHANGES)),
    "records of products": (r"(results/mine/manifests|resources)/outputs/.*", tuple(CHANGES)),
    "records": (rf"{RUN}/manifests/.*", ("detection", "extraction", "report")),
    "tokens": (rf"{RUN}/\w+\.parquet", ("detection", "extraction", "ablation", "report")),
    "tables, Parquet": (rf"{RUN}/tables/.*parquet", ("weights", "ablation", "report")),
    "tables, CSV": (rf"{RUN}/tables/.*csv", ("weights", "ablation", "report")),
    "report": (rf"{RUN}/report\.html", ("detection", "weights")),
    "findings": (rf"{RUN}/findings\.json", ("detection", "weights")),
    "kept by ablation": (rf"{RUN}/ablation/.*", ("ablation",)),
    "measured": (rf"({RUN}|resources)/measured/.*", ("report",)),
    "weights": (r"resources/weights/.*", ("weights", "report")),
    "model record": (r"resources/models/.*\.json", ("detection", "extraction", "report")),
    "tokens, shared": (r"resources/tokens/.*", ("extraction", "ablation")),
    "digests": (r"resources/(digests|architectures)/.*", ("extraction", "ablation")),
    "model": (r"model/.*", ()),
    "others": (r"(results|resources)/.*", tuple(CHANGES)),
}
"""Kinds of files: a path is of the first one that it matches; and the stages that may read it."""

EXEMPT = re.compile(r".*/(logs|locks)/.*|.*/\.lock")
"""Logs are read by people alone, and files of locks are empty or name a process that may be dead.

Texts of the dataset are the user's, who may change them at any time: that is not damage. So are
files of the model, but a run knows them by their checksums and reads them for each job.
"""

MODEL = "model"
CACHE = "digests"
"""Of the user's files, with their sizes and times. `verify` reads the files instead, and a damaged
one is void."""

AT_NEED = re.compile(rf"{RUN}/(boundaries\.zarr/\w+/c/.*|ablation/.*|summaries/\w+/.*)")
"""What is computed again only where a job needs it: once damage is gone it may be missing."""

SUPERSEDED = re.compile(rf"{RUN}/summaries/mlp_in@.*")
"""What is left of a site that is stored now: a damaged one goes, and comes back at need."""

WAYS = ("the command", "verify, then the command", "the command with another configuration")
GOOD = ("named", "recomputed", "unused", "another input")
BAD = ("used", "stuck", "passed over", "not named")
MEANINGS = {
    "named": "a line names the file",
    "recomputed": "without a word, and all files are those of the reference",
    "unused": "no job read it, and `verify` names it",
    "another input": "a file of the model: what depends on it is computed for it",
    "used": "the command succeeds, and another file differs from that of an undamaged run",
    "stuck": "`verify` and the command, twice, do not end in the undamaged run",
    "passed over": "`verify` passes it",
    "not named": "the command fails, and no line names the file",
}


@dataclass(frozen=True)
class Flip:
    """A bit of a file, and what runs afterwards."""

    index: int
    kind: str
    file: str
    byte: int
    bit: int
    way: str
    change: str

    def __str__(self) -> str:
        changed = f" ({self.change})" if self.change else ""
        where = f"{self.file}, byte {self.byte}, bit {self.bit}"
        return f"{self.index}: {self.kind}: {where}; {self.way}{changed}"


@dataclass
class Outcome:
    flip: Flip
    name: str
    said: str

    @property
    def bad(self) -> bool:
        return self.name in BAD

    def __str__(self) -> str:
        return f"{self.flip}: {self.name.upper() if self.bad else self.name}: {self.said[:300]}"


class Finished:
    """A finished run, and a copy of it for each worker.

    Attributes:
        left: what an undamaged run leaves, by what the configuration is changed by.
    """

    def __init__(
        self, folder: Path, workers: int = 1, changes: Sequence[str] = tuple(CHANGES)
    ) -> None:
        forked.python()  # before there are threads
        base = commanded.project(folder / "worker-0" / "run", cores=workers)
        _succeed(base, CONFIG)
        for index in range(1, workers):
            shutil.copytree(base.folder, folder / f"worker-{index}" / "run")
        projects = [Project(folder / f"worker-{index}" / "run") for index in range(workers)]
        self._free: Queue[Project] = Queue()
        for project in projects:
            _succeed(project, CONFIG)
            _verify(project, CONFIG)
            shutil.copytree(project.folder, project.folder.with_name("reference"))
            self._free.put(project)
        self.left = {"": base.left()}
        assert all(project.left() == self.left[""] for project in projects)
        with ThreadPoolExecutor(workers) as pool:
            self.left |= zip(changes, pool.map(self._changed, changes), strict=True)

    def _changed(self, change: str) -> dict[str, str]:
        project = self._free.get()
        try:
            commanded.sync(project.folder.with_name("reference"), project.folder)
            _succeed(project, changed(change))
            return project.left()
        finally:
            self._free.put(project)

    def files(self) -> dict[str, list[str]]:
        """The files in which a bit may be flipped, by kind."""
        folder = self._free.queue[0].folder.with_name("reference")
        found: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_file() and path.stat().st_size and not EXEMPT.fullmatch(name):
                kinds = (kind for kind, (file, _) in KINDS.items() if re.fullmatch(file, name))
                if kind := next(kinds, None):
                    found[kind].append(name)
        return {kind: files for kind, files in found.items() if files}

    def flip(self, seed: int, index: int) -> Flip:
        """The flip of a number: each kind has its turn, the rest is drawn."""
        folder, files = self._free.queue[0].folder.with_name("reference"), self.files()
        chance = random.Random(f"{seed} {index}")
        turn, place = divmod(index, len(files))
        kinds = random.Random(f"{seed} kinds {turn}").sample([*files], len(files))
        kind = kinds[place]
        file = chance.choice(files[kind])
        ways = WAYS if KINDS[kind][1] else WAYS[:2]
        way = ways[turn % len(ways)]
        changes = [change for change in KINDS[kind][1] if change in self.left]
        change = chance.choice(changes) if way == WAYS[2] and changes else ""
        size = (folder / file).stat().st_size
        return Flip(index, kind, file, chance.randrange(size), chance.randrange(8), way, change)

    def outcome(self, flip: Flip) -> Outcome:
        """Flip a bit in a copy, run the commands, and look at what is left."""
        project = self._free.get()
        try:
            commanded.sync(project.folder.with_name("reference"), project.folder)
            return Trial(project, flip, self.left[flip.change]).outcome()
        finally:
            self._free.put(project)


class Trial:
    """A flip in a copy of the run.

    Args:
        expected: what an undamaged run leaves.
    """

    def __init__(self, project: Project, flip: Flip, expected: dict[str, str]) -> None:
        self.project, self.flip, self.expected = project, flip, expected
        self.config = changed(flip.change)
        self.said: list[str] = []

    def outcome(self) -> Outcome:  # noqa: PLR0911
        damaged = flip_bit(self.project.folder / self.flip.file, self.flip.byte, self.flip.bit)
        if self.flip.way == WAYS[1] and not self._verify().status and self.flip.kind != CACHE:
            return self._ends("passed over")
        done = self._command()
        if self.flip.kind == MODEL:
            return self._of_the_model(done)
        if done.status:
            return self._ends("named" if self._named() else "not named", mended=True)
        file = self.project.folder / self.flip.file
        untouched = file.exists() and file.read_bytes() == damaged
        others = [path for path in self._different() if path != counts_as(self.flip.file)]
        if others or (self._different() and not untouched):
            return self._ends("used", also=", ".join(others or self._different()))
        if not untouched:
            return self._ends("named" if self._named() else "recomputed")
        if self.flip.kind == CACHE:
            return self._ends("unused")
        if not self._verify().status:
            return self._ends("passed over")
        return self._ends("unused" if self._named() else "not named", mended=True)

    def _of_the_model(self, done: Done) -> Outcome:
        """A file of the user's: it counts as it is, and as it was once it is put back."""
        named = self._named()
        records = [path for path in self._different() if path.startswith("resources/models/")]
        noticed = bool(records) or bool(done.status)
        if not noticed and not self._verify().status:
            return self._ends("passed over")
        reference = self.project.folder.with_name("reference")
        shutil.copy2(reference / self.flip.file, self.project.folder / self.flip.file)
        if done.status and not named:
            return self._ends("not named", mended=True)
        return self._ends("named" if named else "another input", mended=True)

    def _ends(self, name: str, mended: bool = False, also: str = "") -> Outcome:
        """An outcome; where asked for, only if the run comes to be the undamaged one."""
        words = also or next((w for w in map(_last, reversed(self.said)) if w), "")
        if mended and not self._mended():
            return Outcome(self.flip, "stuck", f"{words} ... {_last(self.said[-1])}")
        return Outcome(self.flip, name, words)

    def _mended(self) -> bool:
        """Whether `verify` and the command, up to twice, lead to the undamaged run."""
        for _ in range(2):
            self._verify()
            if not self._command().status and not self._different():
                return True
        self.said.append(f"differs: {', '.join(self._different()[:4])}")
        return False

    def _named(self) -> bool:
        return names_damage("\n".join(self.said), self.flip.file)

    def _verify(self) -> Done:
        done = self.project.verify(self.config)
        self.said.append(done.said)
        return done

    def _command(self) -> Done:
        done = self.project.command(self.config)
        self.said.append(done.said)
        return done

    def _different(self) -> list[str]:
        left = self.project.left()
        gone = self.expected.keys() - left.keys()
        paths = {path for path in gone if not AT_NEED.fullmatch(path)}
        paths |= {path for path in left if left[path] != self.expected.get(path)}
        superseded = {path for path in gone if SUPERSEDED.fullmatch(path)}
        if self.flip.change == "extraction" and superseded:
            paths -= {*superseded, f"{RUN}/{COMMITS}"}  # with their commits
        return sorted(paths)


def outcomes(
    finished: Finished, seed: int, indices: Sequence[int], workers: int, end: float = math.inf
) -> Iterator[Outcome]:
    """The outcomes of flips, in order; after the time `end` no more are begun."""

    def outcome(flip: Flip) -> Outcome | None:
        return finished.outcome(flip) if time.monotonic() < end else None

    chosen = [finished.flip(seed, index) for index in indices]
    with ThreadPoolExecutor(workers) as pool:
        yield from filter(None, pool.map(outcome, chosen))


def changed(change: str) -> dict[str, Any]:
    """The configuration with a change."""
    config = copy.deepcopy(CONFIG)
    for section, keys in CHANGES.get(change, {}).items():
        config[section] = config.get(section, {}) | keys
    return config


def counts_as(file: str) -> str:
    """The path under which a file is compared."""
    return str(Path(file).parent) if file.endswith(".jsonl") else file


def flip_bit(path: Path, byte: int, bit: int) -> bytes:
    """Flip a bit of a file, which keeps its times; what is in it then."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return bytes(content)


DAMAGE = re.compile(
    r"damaged|lost|not what|checksum|replaced|not the file|not all commits|another|differs?\b|"
    r"cannot be read|not JSON"
)


def names_damage(said: str, file: str) -> bool:
    """Whether a line says of a file that it is damaged.

    By its path, or for chunks and summaries by array, layer and chunk. Snakemake's own lists of
    inputs and outputs do not count.
    """
    lines = [line for line in said.splitlines() if line[:1].strip() and DAMAGE.search(line)]
    return any(re.search(pattern, line) for pattern in _patterns(file) for line in lines)


def _patterns(file: str) -> Iterator[str]:
    yield re.escape(file)
    if found := re.fullmatch(rf"{RUN}/activations\.zarr/(\w+)/c/(?:\d+/)?(\d+)/\d+", file):
        yield rf"\b{found[1]}\b.*\bchunk {found[2]}\b"
    if found := re.fullmatch(rf"{RUN}/boundaries\.zarr/\w+/c/(\d+).*", file):
        yield rf"\bboundary\b.*\bchunk {found[1]}\b"
    if found := re.fullmatch(rf"{RUN}/summaries/(\w+).*/layer-(\d+)/chunk-(\d+).*", file):
        yield rf"\b{found[1]}\b.*\blayer {found[2]}\b.*\bchunk {found[3]}\b"


def _last(said: str) -> str:
    return Done(0, said).last_words


def _succeed(project: Project, config: dict[str, Any]) -> None:
    done = project.command(config)
    assert done.status == 0, done.said


def _verify(project: Project, config: dict[str, Any]) -> None:
    done = project.verify(config)
    assert done.status == 0, done.said
