"""Faults of three kinds, and what becomes of a tiny run: kills, flipped bits, and histories.

    .venv/bin/python benchmarks/faults.py [--kills 200] [--seed 0] [--minutes 10]
    .venv/bin/python benchmarks/faults.py --flips [200] [--seed 0] [--minutes 20] [--only INDEX]
    .venv/bin/python benchmarks/faults.py --histories [100] [--seed 0] [--minutes 20] [--only STEP]

**Kills.** Each kill strikes a copy of a small run: every other one before a random operation on a
file (what is being written has come half way), the others at a random moment. Then the stage is
started again. It survived if it comes to its end, every file that it leaves equals that of an
undisturbed run byte for byte, and no batch ran again whose rows had all been committed. Of commit
files, which hold lines in another order, what they stand for is compared; of the report everything
but the table of what jobs took.

**Flips.** Each flip changes one bit of a finished run, of each kind of file in turn; then the
ordinary command runs, alone, behind `verify`, or with another configuration (`tests/flips.py`).

**Histories.** One run folder is taken through random configurations, with kills, deleted outputs
and named targets in between. Each state is compared with a fresh run in another folder, byte for
byte (`tests/histories.py`).

Flips and histories end with status 1 where a goal is missed.
"""

import argparse
import copy
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import disturbed
import flips
import histories
import tiny
from disturbed import History, Survival

SEQUENCES = 48
STEPS = 10
"""Steps of a history."""
WORKERS = 2
"""Projects at work side by side, each on a core."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40, help="number of kills")
    parser.add_argument("--flips", type=int, nargs="?", const=200, help="flip so many bits instead")
    parser.add_argument(
        "--histories", type=int, nargs="?", const=100, help="take so many steps instead"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="after which to stop in any case")
    parser.add_argument("--only", type=int, help="repeat the flip or step of this number")
    asked = parser.parse_args(arguments)
    end = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if asked.flips is not None:
            return flip(folder, asked.flips, asked.seed, end, asked.only)
        if asked.histories is not None:
            return wander(folder, asked.histories, asked.seed, end, asked.only)
        print(f"{asked.kills} kills, seed {asked.seed}", flush=True)
        stages = struck(folder)
        chance = random.Random(asked.seed)
        tried = kills(stages, asked.kills, end, chance, folder / "struck")
    report(stages, tried)
    return 0


def flip(folder: Path, count: int, seed: int, end: float, only: int | None) -> int:
    """Flip bits, print what becomes of them by kind of file; 1 where a goal is missed."""
    print(f"{count} flips, seed {seed}", flush=True)
    finished = flips.Finished(folder, WORKERS)
    indices = range(count) if only is None else [only]
    found: list[flips.Outcome] = []
    for outcome in flips.outcomes(finished, seed, indices, WORKERS, end):
        found.append(outcome)
        if len(found) % 20 == 0:
            print(f"{len(found)} flips, {sum(o.bad for o in found)} missed a goal", flush=True)
        if outcome.bad or only is not None:
            print(outcome, flush=True)
            print(
                f"  again: benchmarks/faults.py --flips --seed {seed} --only {outcome.flip.index}"
            )
    names = [name for name in (*flips.GOOD, *flips.BAD) if any(o.name == name for o in found)]
    for name in names:
        print(f"{name}: {flips.MEANINGS[name]}")
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in found:
        by_kind[outcome.flip.kind][outcome.name] += 1
    print(f"{'':20}" + "".join(f"{name:>14}" for name in names))
    for kind in sorted(by_kind, key=[*flips.KINDS].index):
        print(f"{kind:20}" + "".join(f"{by_kind[kind][name]:14}" for name in names))
    total = Counter(outcome.name for outcome in found)
    counts = ", ".join(f"{name} {total[name]}" for name in (*flips.GOOD, *flips.BAD))
    print(f"{len(found)} flips, seed {seed}: {counts}")
    return int(any(outcome.bad for outcome in found))


def wander(folder: Path, count: int, seed: int, end: float, only: int | None) -> int:
    """Take runs through configurations, print every state that is not as fresh; 1 if any."""
    print(f"{count} steps, seed {seed}", flush=True)
    numbers = range(-(-count // STEPS)) if only is None else [only // STEPS]
    tried: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    steps = faults = 0
    for state in histories.states(folder, seed, numbers, STEPS, WORKERS, end, only):
        steps += 1
        if steps % 10 == 0:
            print(f"{steps} steps, {faults} not as fresh", flush=True)
        happened = {*state.step.changed, *(kind for kind, _ in state.step.events)}
        tried.update(happened)
        if state.faults:
            faults += 1
            bad.update(happened)
            print(f"{state}\n  before: {histories.configuration(state.before)}")
            print(f"  then: {state.step.config}\n  {ALONE[bool(state.alone)]}")
            print(
                f"  again: benchmarks/faults.py --histories --seed {seed} --only {state.step.index}"
            )
        elif only is not None:
            print(state, flush=True)
        sys.stdout.flush()
    for key in sorted(tried, key=[*histories.SPACE, *histories.EVENTS].index):
        print(f"{key:42} in {tried[key]:3} steps, {bad[key]:3} of them not as fresh")
    print(f"{steps} steps, seed {seed}: {steps - faults} as fresh, {faults} not")
    return int(faults > 0)


ALONE = {
    True: "a fresh run of the configuration before, taken there without events, has it too",
    False: "a fresh run of the configuration before, taken there without events, has it not",
}


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
    sys.exit(main())
