"""One run folder is taken through random configurations; each state is compared with a fresh run.

A history is a chain of steps that begins with a finished run. A step changes a key or two and runs
the ordinary command. Before it, Snakemake may be killed, an output or `.snakemake` deleted, or a
target asked for by its name. Every state has to equal what a fresh run of the same configuration
leaves in another folder, but for what `LEFTOVERS`, `AT_NEED`, `_counted` and
`differences` name.
"""

import copy
import json
import math
import random
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import Any

import commanded
import forked
import numpy as np
import safetensors
import zarr
from commanded import Done, Project
from times import comparable, has_times, without_times

from outlier_atlas import inputs, products
from outlier_atlas.files import canonical, read_record
from outlier_atlas.settings.configuration import load
from outlier_atlas.settings.sites import DECLARED
from outlier_atlas.statistics.tiles import kind_of
from outlier_atlas.store import summaries

RUN = "results/mine"
Config = dict[str, Any]
Choice = dict[str, Any]

SPACE: dict[str, list[Any]] = {
    "model.source": ["./model"] * 4 + ["./other"],
    "model.dtype": ["bfloat16"] * 3 + ["float32"],
    "dataset.source": ["./texts"] * 3 + ["./others"],
    "dataset.sequences": [4, 3, 6],
    "dataset.sequence_length": [16, 24],
    "dataset.packing": ["concat", "document"],
    "dataset.bos": ["auto", "auto", "never"],
    "extraction.sites": [
        ["resid_post"],
        ["attn_in", "resid_post"],
        ["mlp_in", "attn_sink"],
        ["attn_in", "mlp_in"],
    ],
    "extraction.store": ["all", [], "first"],
    "extraction.layers": ["all", "all", [0, 2], [1]],
    "extraction.layer_groups": [1, 2, 3, "auto"],
    "extraction.sequence_shards": [1, 2],
    "extraction.perplexity": [False, True],
    "extraction.advanced.chunk_tokens": ["auto", 8, 40],
    "extraction.advanced.compression": ["lz4"] * 3 + ["zstd"],
    "extraction.advanced.sink_tokens": [64, 64, 8],
    "extraction.advanced.outlier_floor": [0.5, 1.0],
    "extraction.advanced.massive_floor": [0.5, 1.0],
    "detection.llm_int8.threshold": [1.0, 1.5, 2.0],
    "detection.massive_activations.absolute": [2.0, 1.5],
    "detection.exclude.first_positions": [0, 0, 1],
    "detection.smoothquant.alpha": [0.5, 0.7],
    "weights.measure": [True, True, False],
    "ablation.sequences": [0] * 5 + [1],
    "report.rows": [25, 7],
}
"""Values of each key. One that is named more often is drawn more often."""

EVENTS = ("kill", "forget", "delete", "named")

FIXED: Config = {
    "run": {"name": "mine"},
    "extraction": {"verify": "never"},
    "detection": {"massive_activations": {"ratio": 3.0}, "bootstrap": {"resamples": 100}},
    "ablation": {"interventions": ["zero"], "random_draws": 1, "most": 1},
    # One sequence a batch: the last bits of a number may depend on the batch.
    "execution": {"device": "cpu", "threads": 1, "batch_size": 1},
}

LEFTOVERS = {
    r"manifests/extraction/.*": "of another cut into layer groups and sequence shards",
    r"manifests/(inputs|outputs)/(ablate|extract\w+)\b.*": "of such a stage, too",
    r"manifests/(layer_groups|(inputs|outputs)/choose_layer_groups)\.json": (
        "of `layer_groups: auto`, where a number is configured now"
    ),
    r"(ablation/.*|tables/ablations\..*)": ("of the ablation stage, which is not configured now"),
    r"summaries/.*": "of a lower floor, which serves a higher one, too",
    r"boundaries\.zarr/.*": "of what was computed in another cut into layer groups",
}
"""What a folder may hold that a fresh run does not, and why."""

AT_NEED = {
    r"boundaries\.zarr/.*": "computed where a layer group is, and with the values before it",
    r"summaries/.*": "made where no summary of a lower floor serves",
    r"ablation/.*": "made where it is needed",
}
"""What a fresh run leaves and this folder may lack, and why."""


@dataclass(frozen=True)
class Step:
    """A configuration, by key, and what happens before the command runs.

    Attributes:
        events: (kind, argument); kinds are `kill`, `named`, `delete` and `forget`.
        looks: whether `verify` and the same command run afterwards.
    """

    index: int
    choice: Choice
    changed: tuple[str, ...]
    events: tuple[tuple[str, Any], ...]
    looks: bool

    @property
    def config(self) -> Config:
        return configuration(self.choice)

    def __str__(self) -> str:
        happens = "".join(f", {kind} {value}" for kind, value in self.events)
        return f"{self.index}: {', '.join(f'{k}={self.choice[k]}' for k in self.changed)}{happens}"


@dataclass
class State:
    """What came of a step.

    Attributes:
        faults: nothing if the state is that of a fresh run, reached by one command.
        before: the configuration of the step before it.
        alone: of a fault, whether a fresh run of that configuration has it, too, without events.
    """

    step: Step
    before: Choice
    faults: list[str] = field(default_factory=list)
    alone: bool | None = None

    def __str__(self) -> str:
        return f"{self.step}: {'; '.join(self.faults) or 'as fresh'}"


def configuration(choice: Choice) -> Config:
    """The configuration of a choice of values."""
    config = copy.deepcopy(FIXED)
    for key, value in choice.items():
        *sections, name = key.split(".")
        section = config
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = value
    extraction = config["extraction"]
    if extraction["store"] == "first":
        extraction["store"] = extraction["sites"][:1]
    return config


def history(seed: int, number: int, steps: int) -> list[Step]:
    """The run that a history begins with, and its steps."""
    chance = random.Random(f"{seed} {number}")
    choice = _drawn(chance, None, len(SPACE))
    drawn = [Step(-1, choice, tuple(SPACE), (), looks=False)]
    for index in range(number * steps, (number + 1) * steps):
        before, choice = choice, _drawn(chance, choice, chance.choice((1, 1, 1, 2, 2, 4)))
        changed = tuple(key for key in SPACE if choice[key] != before[key])
        looks = chance.random() < 0.25
        drawn.append(Step(index, choice, changed, tuple(_events(chance)), looks))
    return drawn


def _drawn(chance: random.Random, choice: Choice | None, changes: int) -> Choice:
    """Another choice that is accepted, with so many other values."""
    while True:
        if choice is None:
            other = {key: chance.choice(values) for key, values in SPACE.items()}
        else:
            other = dict(choice)
            for key in chance.sample([*SPACE], changes):
                other[key] = chance.choice(SPACE[key])
        if other != choice and _accepted(other):
            return other


def _accepted(choice: Choice) -> bool:
    try:
        load(configuration(choice), "mine")
    except ValueError:
        return False
    return True


def _events(chance: random.Random) -> Iterator[tuple[str, Any]]:
    if chance.random() < 0.25:
        yield "kill", (round(chance.uniform(1, 8), 2), chance.random() < 0.7)
    if chance.random() < 0.1:
        yield "forget", ".snakemake"
    if chance.random() < 0.15:
        yield "delete", chance.random()
    if chance.random() < 0.2:
        yield "named", chance.random()


class FreshRunError(Exception):
    """A fresh run of a configuration fails: there is nothing to compare with."""


class Fresh:
    """Fresh runs by configuration, each made once.

    Args:
        folders: projects in which they run, one by worker.
    """

    def __init__(self, projects: Queue[Project], kept: Path) -> None:
        self._projects, self._kept = projects, kept
        self._runs: dict[str, Future[Path]] = {}
        self._lock = Lock()

    def run(self, choice: Choice) -> Path:
        """The folder of a fresh run of a configuration, with its `.snakemake`."""
        key = json.dumps(choice, sort_keys=True)
        with self._lock:
            if mine := key not in self._runs:
                self._runs[key] = Future()
            future, place = self._runs[key], self._kept / f"{len(self._runs)}"
        if mine:
            try:
                future.set_result(self._made(configuration(choice), place))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _made(self, config: Config, place: Path) -> Path:
        project = self._projects.get()
        try:
            for name in ("results", ".snakemake"):
                shutil.rmtree(project.folder / name, ignore_errors=True)
            done = project.command(config)
            if done.status:
                raise FreshRunError(f"a fresh run has {_shown(_failed(done))}")
            place.mkdir()
            for name in ("results", ".snakemake"):
                (project.folder / name).rename(place / name)
            return place
        finally:
            self._projects.put(project)


class Chain:
    """A run folder that goes through a history."""

    def __init__(self, project: Project, fresh: Fresh) -> None:
        self.project, self.fresh = project, fresh
        self.run = project.folder / RUN

    def states(self, steps: list[Step], end: float = math.inf) -> Iterator[State]:
        """Take the run through the steps. After a fault it goes on from a fresh run."""
        if time.monotonic() > end:
            return
        first, *others = steps
        before = first.choice
        try:
            self._reset(before)
        except FreshRunError as error:
            yield State(first, before, [str(error)])
            return
        for step in others:
            if time.monotonic() > end:
                return
            state = State(step, before)
            try:
                self._take(state)
            except FreshRunError as error:
                yield State(step, before, [str(error)])
                continue
            if state.faults:
                state.alone = self._alone(before, step)
                self._reset(step.choice)
            before = step.choice
            yield state

    def _take(self, state: State) -> None:
        step, faults, config = state.step, state.faults, state.step.config
        fresh = self.fresh.run(step.choice) / RUN
        for kind, value in step.events:
            if kind == "kill":
                self.project.struck(config, *value)
            elif kind == "forget":
                shutil.rmtree(self.project.folder / ".snakemake", ignore_errors=True)
            elif kind == "delete":
                self._delete(value)
            elif kind == "named":
                faults += self._named(config, fresh, value)
        faults += self._command(config, fresh)
        if step.looks and not faults:
            faults += self._looked_at(config)

    def _command(self, config: Config, fresh: Path) -> list[str]:
        """Run the command; what is wrong then, and whether it is after more commands."""
        wrong = self._wrong(config, fresh)
        if not wrong:
            return []
        for more in range(1, 3):
            last = self._wrong(config, fresh)
            if not last:
                return [f"{_shown(wrong)} (as fresh after {more} more)"]
            if last == wrong:
                break
        stuck = "" if last == wrong else f", and in the end {_shown(last)}"
        return [f"{_shown(wrong)} (still after {more} more{stuck})"]

    def _wrong(self, config: Config, fresh: Path) -> list[str]:
        done = self.project.command(config)
        return _failed(done) or differences(fresh, self.run)

    def _named(self, config: Config, fresh: Path, drawn: float) -> list[str]:
        """Ask for an output by its name; it is as fresh then."""
        name = _pick(fresh, drawn)
        done = self.project.command(config, f"{RUN}/{name}")
        found = self.run / name
        if done.status or not found.exists():
            return [f"asked for by name, {name}: {done.last_words}"]
        alike = _content(found) == _content(fresh / name)
        return [] if alike else [f"asked for by name, {name} is stale"]

    def _delete(self, drawn: float) -> None:
        if self.run.exists():
            (self.run / _pick(self.run, drawn)).unlink(missing_ok=True)

    def _looked_at(self, config: Config) -> list[str]:
        verified = self.project.verify(config)
        if verified.status:
            return [f"verify: {verified.last_words}"]
        done = self.project.command(config)
        if "Nothing to be done" not in done.said:
            rules = re.findall(r"^  (\w+) +\d+  ", done.said, re.MULTILINE)
            return [f"runs again: {', '.join(dict.fromkeys(rules)) or done.last_words}"]
        return []

    def _alone(self, before: Choice, step: Step) -> bool:
        """Whether the fault comes from a fresh run of the configuration before, without events."""
        self._reset(before)
        fresh = self.fresh.run(step.choice) / RUN
        done = self.project.command(step.config)
        return bool(_failed(done) or differences(fresh, self.run))

    def _reset(self, choice: Choice) -> None:
        """Put a fresh run into the folder, as Snakemake knows it."""
        fresh = self.fresh.run(choice)
        for name in ("results", ".snakemake"):
            shutil.rmtree(self.project.folder / name, ignore_errors=True)
            shutil.copytree(fresh / name, self.project.folder / name)


def _failed(done: Done) -> list[str]:
    return [f"status {done.status}: {done.last_words}"] if done.status else []


def _shown(wrong: list[str]) -> str:
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"{', '.join(wrong[:3])}{more}"


def _pick(run: Path, drawn: float) -> str:
    """An output that a user may ask for or delete."""
    found = [
        str(path.relative_to(run))
        for pattern in ("tables/*.parquet", "tables/*.csv", "*.html", "*.json")
        for path in sorted(run.glob(pattern))
        if path.stem != "ablations"
    ]
    return found[int(drawn * len(found))] if found else "report.html"


def differences(fresh: Path, run: Path) -> list[str]:
    """The files in which a run is not as a fresh one, the first ones that are made first."""
    want, have = _counted(fresh), _counted(run)
    wrong = []
    for name in sorted(want.keys() | have.keys(), key=lambda name: (_place(name), name)):
        if name not in have:
            if not _matches(AT_NEED, name):
                wrong.append(f"no {name}")
        elif name not in want:
            if not _matches(LEFTOVERS, name):
                wrong.append(f"left over {name}")
        elif want[name] != have[name] and not (
            _differs_behind_the_end(fresh, run, name) or _lower_floor(fresh / name, run / name)
        ):
            wrong.append(name)
    return wrong


def _lower_floor(fresh: Path, run: Path) -> bool:
    """Whether a summary equals the fresh one once its values below the fresh floor are left out.

    A lower floor serves a higher one, so detection keeps the summaries of a stored site then.
    """
    site = run.parents[1].name
    if run.suffix != ".safetensors" or site not in DECLARED:
        return False
    wanted, kept = ([_fields(tile) for tile in _tiles(path)] for path in (fresh, run))
    if len(wanted) != len(kept) or "floor" not in wanted[0]:
        return False
    for tile, fresh_tile in zip(kept, wanted, strict=True):
        if tile["floor"] > fresh_tile["floor"]:
            return False
        above = np.abs(tile["high_value"]) >= fresh_tile["floor"]
        tile |= {name: tile[name][above] for name in tile if name.startswith("high_")}
        tile["floor"] = fresh_tile["floor"]
    return all(
        np.asarray(tile[name]).tobytes() == np.asarray(value).tobytes()
        for tile, fresh_tile in zip(kept, wanted, strict=True)
        for name, value in fresh_tile.items()
    )


def _fields(tile: Any) -> dict[str, Any]:
    return {field.name: getattr(tile, field.name) for field in fields(tile)}


def _tiles(path: Path) -> list[Any]:
    with safetensors.safe_open(path, "numpy") as file:
        described = json.loads(file.metadata()["summary"])
    return summaries.read(path, kind_of(path.parents[1].name), described["fingerprint"])


def _differs_behind_the_end(fresh: Path, run: Path, name: str) -> bool:
    """Whether two chunks differ only in rows behind the end of their array, which no reader sees.

    Those of sequences that the run has no more stay in an array's last chunk.
    """
    found = re.fullmatch(r"((?:activations|boundaries)\.zarr)/(\w+)/c/([\d/]+)", name)
    if not found:
        return False
    one, other = (
        zarr.open_group(folder / found[1], mode="r", use_consolidated=False)[found[2]]
        for folder in (fresh, run)
    )
    assert isinstance(one, zarr.Array) and isinstance(other, zarr.Array)
    axis, index = len(one.shape) - 2, [int(number) for number in found[3].split("/")]
    last, filled = divmod(one.shape[axis], one.chunks[axis])
    if index[axis] != last or not filled or one.shape != other.shape:
        return False
    values = [np.asarray(array[:]).tobytes() for array in (one, other)]
    return values[0] == values[1]


ORDER = ("tokens", "manifests", "activations", "boundaries", "summaries", "tables", "figures")


def _place(name: str) -> int:
    return next((place for place, first in enumerate(ORDER) if name.startswith(first)), len(ORDER))


def _matches(patterns: dict[str, str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _counted(run: Path) -> dict[str, bytes]:
    """Whatever counts of a run. Commits are left to `verify`, and to what they make a run do."""
    skipped = {"logs", "locks", "commits", ".lock"}
    return {
        str(path.relative_to(run)): _content(path)
        for path in run.rglob("*")
        if path.is_file() and not skipped & set(path.relative_to(run).parts)
        if not has_times(path.relative_to(run))
    }


def _content(path: Path) -> bytes:
    """What is compared of a file.

    Of the report all but the table of what jobs took; of a summary that is made from the store its
    arrays, without the fingerprint: that depends on the rows that jobs committed together.
    """
    content = path.read_bytes()
    if path.parent.name == inputs.FOLDER:
        return inputs.digest_of(path).encode()  # without what marks a change
    if path.parent.name == products.FOLDER:
        record = read_record(path)
        record["files"] = {name: record["files"][name] for name in comparable(record["files"])}
        return canonical(record).encode()
    if path.suffix == ".safetensors" and "@" not in path.parts[-3]:
        end = 8 + int.from_bytes(content[:8], "little")
        header = {k: v for k, v in json.loads(content[8:end]).items() if k != "__metadata__"}
        return json.dumps(header).encode() + content[end:]
    if path.name == "report.html":
        content = without_times(content)
    return content


def _base(folder: Path, cores: int) -> Project:
    """A project that knows its models and their weights, as all runs of a model do."""
    project = commanded.project(folder, cores)
    for model in dict.fromkeys(SPACE["model.source"]):
        choice = {key: values[0] for key, values in SPACE.items()} | {"model.source": model}
        done = project.command(configuration(choice), f"{RUN}/tables/weights.parquet")
        assert done.status == 0, done.said
    for name in ("results", ".snakemake"):
        shutil.rmtree(project.folder / name)
    return project


def states(
    folder: Path,
    seed: int,
    numbers: Sequence[int],
    steps: int,
    workers: int,
    end: float = math.inf,
    last: int | None = None,
) -> Iterator[State]:
    """The states of histories, as they come.

    Args:
        numbers: of the histories.
        end: the time after which no step is begun.
        last: the step after which to stop.
    """
    forked.python()  # before there are threads
    found: Queue[State | None] = Queue()
    base = _base(folder / "base", workers)
    projects: Queue[Project] = Queue()
    for index in range(workers):
        shutil.copytree(base.folder, folder / f"fresh-{index}")
        projects.put(Project(folder / f"fresh-{index}"))
    (folder / "kept").mkdir()
    fresh = Fresh(projects, folder / "kept")

    def go(number: int) -> None:
        try:
            shutil.copytree(base.folder, folder / f"history-{number}")
            chain = Chain(Project(folder / f"history-{number}"), fresh)
            asked = history(seed, number, steps)
            for state in chain.states([s for s in asked if last is None or s.index <= last], end):
                found.put(state)
            shutil.rmtree(chain.project.folder)
        finally:
            found.put(None)

    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(go, number) for number in numbers]
        left = len(jobs)
        while left:
            state = found.get()
            if state is None:
                left -= 1
            else:
                yield state
        for job in jobs:
            job.result()
