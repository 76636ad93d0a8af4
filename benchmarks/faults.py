"""SIGKILL at random moments of every stage: what survives, and how much work is done again.

    .venv/bin/python benchmarks/faults.py [--kills 200] [--seed 0] [--minutes 10]

Each kill strikes a copy of a small run: every other one before a random operation on a file (what
is being written has come half way), the others at a random moment. Then the stage is started again.
It survived if it comes to its end, every file that it leaves equals that of an undisturbed run byte
for byte, and no batch ran again whose rows had all been committed. Of commit files, which hold
lines in another order, what they stand for is compared; of the report everything but the table of
what jobs took.
"""

import argparse
import copy
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import disturbed
import tiny
from disturbed import History, Survival

SEQUENCES = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="after which to stop in any case")
    asked = parser.parse_args()
    end = time.monotonic() + 60 * asked.minutes
    print(f"{asked.kills} kills, seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        stages = struck(Path(temporary))
        chance, folder = random.Random(asked.seed), Path(temporary) / "struck"
        tried = kills(stages, asked.kills, end, chance, folder)
    report(stages, tried)


def struck(folder: Path) -> dict[str, History]:
    """The stages of a run, and those that fetch for one, each with its undisturbed run."""
    histories = [
        History(folder / "run", config(), [text * 20 for text in tiny.SENTENCES]),
        History(folder / "hub", disturbed.FROM_THE_HUB, only="fetch_"),
        History(folder / "index", disturbed.FROM_THE_INDEX, only="fetch_"),
    ]
    return {name: history for history in histories for name in history.operations}


def config() -> dict:
    """Chunks of one batch each, and many of them."""
    settings = copy.deepcopy(disturbed.CONFIG)
    settings["dataset"] |= {"sequences": SEQUENCES, "sequence_length": 16, "packing": "concat"}
    settings["extraction"]["advanced"]["chunk_tokens"] = 16
    return settings


def kills(
    stages: dict[str, History], count: int, end: float, chance: random.Random, folder: Path
) -> list[tuple[str, Survival]]:
    """Strike stages; where one ended before the kill came, strike again."""
    names = [*stages]
    # Half of the kills strike an extraction job, where the work is.
    others = sum(not history.batches[name] for name, history in stages.items())
    extraction = len(stages) - others
    weights = [1 if stages[name].batches[name] else extraction / others for name in names]
    tried: list[tuple[str, Survival]] = []
    while len(tried) < count and time.monotonic() < end:
        name = chance.choices(names, weights)[0]
        history = stages[name]
        at = chance.randrange(len(history.operations[name]))
        moment = chance.uniform(0, history.seconds[name])
        kill = disturbed.at_operation(at) if len(tried) % 2 else disturbed.after(moment)
        survival = disturbed.survive(history, name, folder, kill)
        shutil.rmtree(folder)
        if survival.killed:
            tried.append((name, survival))
            if len(tried) % 20 == 0:
                print(
                    f"{len(tried)} kills, {sum(s.survived for _, s in tried)} survived", flush=True
                )
        if survival.killed and not survival.survived:
            print(f"LOST: {name}, operation {at} or after {moment:.2f} s: {survival}", flush=True)
    return tried


def report(stages: dict[str, History], tried: list[tuple[str, Survival]]) -> None:
    strikes = Counter(name for name, _ in tried)
    survived = Counter(name for name, survival in tried if survival.survived)
    for name in stages:
        print(f"{name:36} {survived[name]:4} of {strikes[name]:4}")
    print(f"survived {survived.total()} of {strikes.total()}")
    batches_of = {name: history.batches[name] for name, history in stages.items()}
    repeated = [survival.repeated for name, survival in tried if batches_of[name]]
    batches = max(map(len, batches_of.values()))
    print(
        f"batches computed again, of {batches} in an extraction job: "
        f"{sum(repeated) / max(1, len(repeated)):.2f} on average, {max(repeated, default=0)} at "
        f"most; of them committed before: {sum(survival.in_vain for _, survival in tried)}"
    )
    for number, kills_ in sorted(Counter(repeated).items()):
        print(f"  {number} batches again after {kills_} kills")


if __name__ == "__main__":
    main()
