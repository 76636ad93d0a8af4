"""A tiny project on which the ordinary command runs, may be killed, and what it leaves.

Snakemake and its jobs are forked from a Python that has imported everything (`forked.py`): a
command with nothing to do takes two seconds of CPU time, a whole run about ten.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import disturbed
import forked
import planned
import psutil
import tiny
import yaml

from outlier_atlas.files import fingerprint
from outlier_atlas.store.commits import _read as read_commits
from outlier_atlas.store.layout import BOUNDARY, Target
from outlier_atlas.store.run_files import COMMITS

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OUTLIER_ATLAS_MAKE": "", "TQDM_DISABLE": "1"}
PATIENCE = 300
"""Seconds after which a command is taken for hung."""


@dataclass
class Done:
    """How a command ended, and what it printed."""

    status: int
    said: str

    @property
    def last_words(self) -> str:
        """The last line of a job or of ours, without what Snakemake adds."""
        theirs = re.compile(
            r"^(\[|\s|\d\d:\d\d:\d\d |\d+ jobs? |Select|Execute|Finished|Complete log|Elapsed|"
            r"Shutting|Exiting|Removing|"
            r"=|\d+ of \d+|WorkflowError|At least one|Job|Reason|Error in rule|Building|Nothing|$)"
        )
        ours = [line for line in self.said.splitlines() if not theirs.match(line)]
        return ours[-1] if ours else ""


class Project:
    """A folder with models, texts and the configuration of the last command.

    Args:
        cores: for Snakemake. Several projects are at work side by side.
    """

    def __init__(self, folder: Path, cores: int = 1) -> None:
        self.folder, self.cores = folder, cores

    def command(self, config: dict[str, Any], *targets: str) -> Done:
        """Run the ordinary command until it ends."""
        try:
            said, _ = (process := self._started(config, *targets)).communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            return Done(-signal.SIGKILL, f"no end after {PATIENCE} s")
        return Done(process.returncode, said)

    def struck(self, config: dict[str, Any], seconds: float, jobs: bool) -> bool:
        """Start the ordinary command and send SIGKILL after some seconds; whether it was at work.

        Args:
            jobs: whether the jobs are killed with it, or outlive it.
        """
        process = self._started(config)
        try:
            process.communicate(timeout=seconds)
            return False
        except subprocess.TimeoutExpired:
            self.kill(jobs)
            process.communicate()
            return True

    def verify(self, config: dict[str, Any]) -> Done:
        """Run the script of the rule `verify`, as Snakemake does but without the start of one."""
        self._write(config)
        jobs = self.folder / "jobs.json"
        if not jobs.exists() or jobs.stat().st_mtime_ns < self._changed:
            planned.plan(self.folder)
        ended = disturbed.launch(self.folder, "verify")
        return Done(ended.status, ended.said)

    def kill(self, jobs: bool = True) -> None:
        """Kill whatever works in the folder, or Snakemake alone."""
        while found := [process for process in self._at_work() if jobs or _is_snakemake(process)]:
            for process in found:
                process.kill()
            psutil.wait_procs(found, 5)

    def left(self) -> dict[str, str]:
        """Whatever counts of the project, as a digest by path.

        Commit files count together, for
        the rows that they stand for: how rows are grouped into lines depends on what was missing.
        """
        left = disturbed.left(self.folder)
        found = {p: sha for p, sha in left.items() if not p.endswith(".jsonl")}
        for folder in self.folder.glob(f"results/*/{COMMITS}"):
            found[str(folder.relative_to(self.folder))] = _covered(folder)
        return found

    def _started(self, config: dict[str, Any], *targets: str) -> "subprocess.Popen[str]":
        self._write(config)
        command = [forked.python(), "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        command += ["--workflow-profile", str(ROOT / "profiles" / "default")]
        command += ["--cores", str(self.cores), "--configfile", "mine.yaml", "--", *targets]
        return subprocess.Popen(
            command, cwd=self.folder, text=True, env=ENVIRONMENT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _write(self, config: dict[str, Any]) -> None:
        path, text = self.folder / "mine.yaml", yaml.safe_dump(config, sort_keys=False)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        self._changed = path.stat().st_mtime_ns

    def _at_work(self) -> Iterator[psutil.Process]:
        """Processes whose working directory the folder is."""
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.cwd() == str(self.folder):
                    yield process
            except psutil.Error:
                continue


def _covered(folder: Path) -> str:
    """A digest of the rows that are committed, by target and fingerprint.

    Boundaries are left out: one is computed again only where a layer group needs it. So are the
    summaries of a site that is stored now, which nothing reads.
    """
    rows: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    stored = set()
    for path in sorted(folder.glob("*.jsonl")):
        for commit in read_commits(path)[0]:
            for target in commit.checksums:
                if not target.is_summary:
                    stored.add((target.site, target.layer))
                if target.array != BOUNDARY:
                    key = (target.array, target.layer, commit.fingerprint, commit.rows.chunk)
                    rows.setdefault(key, []).append((commit.rows.start, commit.rows.stop))
    needed = [
        key
        for key in sorted(rows)
        if not ((old := Target(*key[:2])).is_summary and (old.site, old.layer) in stored)
    ]
    return fingerprint([[*key, *_merged(rows[key])] for key in needed])


def _merged(ranges: list[tuple[int, int]]) -> list[list[int]]:
    merged: list[list[int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(stop, merged[-1][1])
        else:
            merged.append([start, stop])
    return merged


def _is_snakemake(process: psutil.Process) -> bool:
    """Whether a process is Snakemake itself, which holds the lock of the run.

    A fork of the server carries the server's command line, so that tells nothing.
    """
    return any(Path(file.path).name == "snakemake" for file in process.open_files())


def project(folder: Path, cores: int = 1, **sizes: Any) -> Project:
    """A folder with two models of three layers, and two folders of texts."""
    folder = folder.resolve()
    for seed, name in enumerate(("model", "other")):
        config = tiny.transformers.LlamaConfig(**(tiny.SIZES | {"num_hidden_layers": 3} | sizes))
        tiny.checkpoint(folder / name, config, seed)
    for shift, name in enumerate(("texts", "others")):
        (folder / name).mkdir()
        for index in range(8):
            text = tiny.SENTENCES[(index + shift) % 3][: 20 + 8 * index]
            (folder / name / f"{index}.txt").write_text(text)
    return Project(folder, cores)


def sync(source: Path, target: Path) -> None:
    """Make a folder equal to another one, times included, `.snakemake` included."""
    wanted = {path.relative_to(source): path for path in source.rglob("*")}
    for path in sorted(target.rglob("*"), reverse=True):
        if path.relative_to(target) not in wanted:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, path in wanted.items():
        copy = target / name
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        elif not _alike(path, copy):
            copy.unlink(missing_ok=True)
            shutil.copy2(path, copy)


def _alike(path: Path, copy: Path) -> bool:
    if not copy.is_file() or path.stat().st_mtime_ns != copy.stat().st_mtime_ns:
        return False
    return path.read_bytes() == copy.read_bytes()
