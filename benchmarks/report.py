"""CPU seconds of the job that renders the report, with its figures, against an empty Python job.

    .venv/bin/python benchmarks/report.py [--pairs 10]

A run of the built-in model on 4 x 256 tokens, with the default three sites: 9 figures. Each side is
a process of its own, from its start to its exit. The other side imports what a page cannot do
without (numpy, pyarrow, jinja2). Prints the CPU seconds of both, and of static figures (36 files),
which are drawn only on demand.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ["TQDM_DISABLE"] = "1"

from paired import measure
from pipeline import Run
from real import MODEL, TEXT, built_in

PATHS = f"import sys, json; sys.path.insert(0, {str(ROOT / 'workflow' / 'scripts')!r})\n"
RENDER = """
from pathlib import Path
from outlier_atlas.report.page import PageInputs, render
from outlier_atlas.store.run import Run
run = Run(*map(Path, json.loads(sys.argv[1])))
inputs = PageInputs(json.loads(sys.argv[2]), run)
render({}, inputs, run.folder / "report.html", run.folder / "findings.json")
"""
DRAW = """
from pathlib import Path
from outlier_atlas.report.figures import draw
from outlier_atlas.store.run import Run
run = Run(*map(Path, json.loads(sys.argv[1])))
draw(run.figures, run.tables)
"""
IMPORTS = "import numpy, pyarrow.parquet, jinja2, pydantic, yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    asked = parser.parse_args()
    built_in(ROOT / "resources")
    with tempfile.TemporaryDirectory() as temporary:
        run = _made(Path(temporary))
        folders = run.folder, run.model_record, run.resources, run.tokens
        given = [
            json.dumps([str(path) for path in folders]),
            json.dumps(run.settings.model_dump(mode="json", exclude={"execution"})),
        ]
        measure(
            "report with figures over its imports, CPU",
            lambda: _cpu(PATHS + RENDER, *given),
            lambda: _cpu(IMPORTS),
            pairs=asked.pairs,
        )
        print(f"static figures on demand: {_cpu(PATHS + DRAW, *given):.2f} s of CPU time")


def _made(folder: Path) -> Run:
    dataset = {"source": TEXT, "sequences": 4, "sequence_length": 256}
    settings = {"model": {"source": MODEL, "dtype": "float32"}, "dataset": dataset}
    run = Run(folder, settings, ROOT / "resources")
    run.prepare()
    run.extract()
    run.detect()
    return run


def _cpu(code: str, *arguments: str) -> float:
    """Return the CPU seconds of a process that runs some code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
