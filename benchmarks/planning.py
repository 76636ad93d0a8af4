"""The time that Snakemake takes before the first job, against a Snakefile with as many empty rules.

    .venv/bin/python benchmarks/planning.py [--pairs 6] [--schedulers]

Three commands: `snakemake` of a finished tiny run, where nothing is left to do, and `snakemake -n`
of 12 layer groups x 100 sequence shards (1,200 extraction jobs) and of 12 x 500, of which nothing
is made yet. The Snakefile that they are compared with has the same jobs and dependencies. Its
inputs are plain paths, so each layer group is a rule of its own, and its rules have no functions,
settings, scripts or environments. Both run with `profiles/default`.

Each line has the ratio by the clock, and below it the ratio in CPU time, which swings less while
other programs run, and the peak memory. 12 x 500 runs in a third of the pairs. `--schedulers` runs
the jobs of the compared Snakefile, too, with each of Snakemake's schedulers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
os.environ["TQDM_DISABLE"] = "1"

import paired
import yaml

GOAL = 1.5
MOST_MEMORY = 500
"""Megabytes."""

PROFILE = ["--workflow-profile", str(ROOT / "profiles" / "default")]

EMPTY = """
groups, shards = config["groups"], config["shards"]
run = "results/run"
model, weights, tokens = ("resources/model.json", "resources/weights.json", "resources/tokens.json")
store = [f"{run}/{name}" for name in ("store.json", "tokens.parquet", "tokens.json")]
outputs = [f"{run}/{name}.json" for name in ("detected", "joined", "figures")]

def manifest(group, shard="{shard}"):
    return f"{run}/manifests/group-{group}.shard-{shard}.json"

manifests = [manifest(group, shard) for group in range(groups) for shard in range(shards)]

rule all:
    input: f"{run}/report.html", model, weights, outputs, manifests
"""


def snakefile() -> str:
    """Return the Snakefile with empty rules, in which each layer group has a rule."""
    rules = [
        ("fetch", "", "model"),
        ("weigh", "model", "weights"),
        ("tokenize", "model", "tokens"),
        ("create_store", "model, tokens", "store"),
        ("detect", "model, store, manifests", "outputs[0]"),
        ("join", "weights, outputs[0]", "outputs[1]"),
        ("figures", "outputs[0]", "outputs[2]"),
        ("report", "model, store, outputs", 'f"{run}/report.html"'),
    ]
    text = f"{EMPTY}\n"
    for name, inputs, outputs in rules:
        text += f"rule {name}:\n    input: {inputs or '[]'}\n    output: {outputs}\n"
        text += '    shell: "touch {output}"\n\n'
    return text + (
        "for group in range(groups):\n"
        "    rule:\n"
        '        name: f"extract_{group}"\n'
        "        input: model, store, [manifest(group - 1)] if group else []\n"
        "        output: manifest(group)\n"
        '        log: f"{run}/logs/group-{group}.shard-{{shard}}.log"\n'
        '        shell: "touch {output}"\n\n'
    )


@dataclass
class Command:
    """A command of Snakemake, with the CPU time and the peak memory of its calls.

    Attributes:
        arguments: arguments of `snakemake`.
        folder: its working directory.
        cpu: seconds of CPU time of each call.
        megabytes: peak memory of each call.
    """

    arguments: Sequence[str]
    folder: Path
    cpu: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        """Run the command, and return its seconds."""
        started = time.perf_counter()
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *PROFILE, *self.arguments]
        with (self.folder / "output.txt").open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit((self.folder / "output.txt").read_text())
        self.cpu.append(used.ru_utime + used.ru_stime)
        self.megabytes.append(used.ru_maxrss / (1e3 if sys.platform == "linux" else 1e6))
        return time.perf_counter() - started


def _environment() -> dict[str, str]:
    """Return an environment in which modules are compiled once, as on a user's machine."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


class Projects:
    """A folder for the workflow, and one for the Snakefile with empty rules.

    Args:
        folder: folder in which both are made.
    """

    def __init__(self, folder: Path) -> None:
        self.ours, self.other = folder / "ours", folder / "other"
        self.ours.mkdir()
        self.other.mkdir()
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        # Made by another process: the memory of one that has imported torch would count as that of
        # its children.
        make = (
            "import sys, tiny, pathlib; tiny.llama(pathlib.Path(sys.argv[1]), num_hidden_layers=12)"
        )
        command = [sys.executable, "-c", make, str(self.ours / "model")]
        subprocess.run(command, cwd=ROOT / "tests", check=True)
        (self.other / "Snakefile").write_text(snakefile())

    def commands(self, groups: int, shards: int, *options: str) -> tuple[Command, Command]:
        """Return the same command in both folders."""
        name = f"of-{groups}-x-{shards}"
        rows = self.ours / f"{name}.jsonl"
        rows.write_text((json.dumps({"ids": [5, 17, 200, 9] * 4}) + "\n") * shards)
        config = {
            "model": {"source": "./model"},
            "dataset": {
                "source": rows.name, "input_ids_column": "ids", "packing": "document",
                "sequences": shards, "sequence_length": 16,
            },
            "extraction": {"layer_groups": groups, "sequence_shards": shards},
        }  # fmt: skip
        (self.ours / f"{name}.yaml").write_text(yaml.safe_dump(config))
        ours = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", f"{name}.yaml", *options]
        other = [*options, "--config", f"groups={groups}", f"shards={shards}"]
        return Command(ours, self.ours), Command(other, self.other)


def compare(name: str, commands: tuple[Command, Command], pairs: int) -> None:
    """Print the lines of a command in both folders."""
    ours, other = commands
    for command in commands:
        command()
        command.cpu.clear()
    paired.measure(name, ours, other, goal=GOAL, pairs=pairs)
    cpu = statistics.median(a / b for a, b in zip(ours.cpu, other.cpu, strict=True))
    peak, of_other = max(ours.megabytes), max(other.megabytes)
    met = "" if peak <= MOST_MEMORY else f", above the goal of {MOST_MEMORY} MB"
    print(
        f"    in CPU time {cpu:.3f} ({min(ours.cpu):.2f} to {max(ours.cpu):.2f} s over "
        f"{min(other.cpu):.2f} to {max(other.cpu):.2f} s); peak memory {peak:.0f} MB over "
        f"{of_other:.0f} MB{met}",
        flush=True,
    )


def schedule(projects: Projects, groups: int, shards: int) -> None:
    """Print what the jobs of the Snakefile with empty rules take with each scheduler."""
    for scheduler in ("greedy", "ilp"):
        folder = projects.other.parent / scheduler
        folder.mkdir()
        (folder / "Snakefile").write_text(snakefile())
        options = ["--scheduler", scheduler, "--config", f"groups={groups}", f"shards={shards}"]
        command = Command(options, folder)
        seconds = command() / (groups * shards)
        cpu = command.cpu[0] / (groups * shards)
        print(
            f"{scheduler:>6}: {seconds:.3f} s for each of {groups} x {shards} jobs, CPU {cpu:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--schedulers", action="store_true", help="run 4 x 200 jobs with each")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        projects = Projects(Path(temporary).resolve())
        compare("finished run of 2 x 2, nothing to do", projects.commands(2, 2), asked.pairs)
        for shards, pairs in ((100, asked.pairs), (500, max(1, asked.pairs // 3))):
            commands = projects.commands(12, shards, "--dry-run")
            compare(f"dry run of 12 x {shards}", commands, pairs)
        if asked.schedulers:
            schedule(projects, 4, 200)


if __name__ == "__main__":
    main()
