"""Prediction of the plan's time against second runs on the same machine.

A first run of the built-in model on few tokens leaves its times. Then each of some other runs is
planned by `snakemake plan`, and executed; the plan's number is compared with the whole command.

    .venv/bin/python benchmarks/plan_time.py [--rounds 1]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from paired import Ratio

ROOT = Path(__file__).parents[1]
GOAL = 1.5
"""Largest factor between the predicted and the actual time."""

FIRST: dict[str, Any] = {
    "model": {"source": "builtin:smollm2-135m-instruct", "dtype": "float32"},
    "dataset": {"source": "builtin:sotu", "sequences": 2, "sequence_length": 256},
    "extraction": {"layer_groups": 2},
}
SECOND: dict[str, dict[str, Any]] = {
    "equal": {},
    "twice the tokens": {"dataset": {"sequences": 4}},
    "one layer group": {"extraction": {"layer_groups": 1}},
}
"""What differs from the first run; its model is fetched and its weights are measured."""

PREDICTED = re.compile(r"^Time: about ([\d.]+) (s|min|h) ", re.MULTILINE)
SECONDS = {"s": 1, "min": 60, "h": 3600}


def command(folder: Path, name: str, *targets: str) -> str:
    """Run Snakemake in a folder on the configuration of a name, and return what it printed."""
    done = subprocess.run(
        [
            sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"),
            "--workflow-profile", str(ROOT / "profiles" / "default"), "--cores", "2",
            "--configfile", f"{name}.yaml", "--", *targets,
        ],
        cwd=folder, capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{name}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def configure(folder: Path, name: str, changes: dict[str, Any]) -> None:
    """Write the configuration of a run that differs from the first one."""
    sections = {key: {**FIRST.get(key, {}), **changes.get(key, {})} for key in {*FIRST, *changes}}
    text = yaml.safe_dump({**sections, "run": {"name": name}}, sort_keys=True)
    (folder / f"{name}.yaml").write_text(text)


def predicted(folder: Path, name: str) -> float:
    """Return the seconds that the plan predicts."""
    match = PREDICTED.search(command(folder, name, "plan"))
    assert match, "the plan has a line about time"
    return float(match[1]) * SECONDS[match[2]]


def actual(folder: Path, name: str) -> float:
    """Return the seconds of the whole command."""
    started = time.perf_counter()
    command(folder, name)
    return time.perf_counter() - started


def main() -> None:
    """Print a line for each second run, and one for all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="executions of each second run")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shared = ROOT / "resources" / "builtin"
        (folder / "resources").mkdir()
        if shared.is_dir():  # saves a download
            (folder / "resources" / "builtin").symlink_to(shared)
        configure(folder, "first", {})
        command(folder, "first")
        every = Ratio("plan: predicted / actual time, all second runs", GOAL, [], [], [])
        for index, (title, changes) in enumerate(SECOND.items()):
            of_run = Ratio(f"plan: predicted / actual time, {title}", None, [], [], [])
            for repeated in range(rounds):
                name = f"second-{index}-{repeated}"
                configure(folder, name, changes)
                ours, other = predicted(folder, name), actual(folder, name)
                of_run.ratios.append(ours / other)
                for ratio in (of_run, every):
                    ratio.ours.append(ours)
                    ratio.others.append(other)
                every.ratios.append(max(ours / other, other / ours))
            print(of_run.line(), flush=True)
        print(every._replace(name="plan: factor between predicted and actual time").line())


if __name__ == "__main__":
    main()
