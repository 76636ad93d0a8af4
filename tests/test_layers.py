"""The layers of the library: a package imports only packages below it, and nothing in a circle."""

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflow" / "scripts"
LIBRARY = SCRIPTS / "outlier_atlas"
FOR_ALL = ("files", "text", "units", "locks", "sanitize", "progress", "console", "builtin",
           "job_metrics", "job_times", "earlier_jobs", "phases", "machine", "inputs", "products",
           "changes", "digests", "sources", "stopping", "signals", "threads",
           "compiling")  # fmt: skip
"""Modules that every package may import."""


def layers():
    """The packages of CONTRIBUTING.md, the lowest first."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = text.split("Inside the library")[1].split("All of them may import")[0]
    return re.findall(r"^ {4}(\w+)/", block, re.MULTILINE)[::-1]


@pytest.fixture(scope="module")
def imports():
    """The modules that each module of the library imports anywhere, for type checks too."""
    modules = {
        ".".join(path.relative_to(SCRIPTS).with_suffix("").parts).removesuffix(".__init__"): path
        for path in LIBRARY.rglob("*.py")
    }
    found = defaultdict(set)
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: a relative import"
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [each if each in modules else node.module for each in full]
            found[name] |= {each for each in names if each in modules}
    return found


OF_A_CRITERION = {
    "settings": "settings",
    "tables": "tables",
    "description": "tables",
    "show": "report",
    "shows": "report",
    "finding_table": "report",
    "comparison": "report",
    "figure": "report",
    "figures": "report",
    "target": "ablation",
    "targets": "ablation",
    "massive_values": "ablation",
    "search": "ablation",
}
"""The layer of a module of `criteria/`, which has all of a criterion; the others are `criteria`."""


def package(module):
    """The package whose layer a module is in, or the module itself where it is in none."""
    parts = module.split(".")
    if parts[1:2] == ["criteria"]:
        return OF_A_CRITERION.get(parts[-1], "criteria")
    return parts[1] if len(parts) > 1 else ""


def test_the_layers_of_contributing_are_the_packages():
    packages = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert packages - {"terminal"} == set(layers()), "terminal/ is for the Snakefile"


def test_imports_go_down(imports):
    below = {name: place for place, name in enumerate(layers())}
    upward = [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in others
        if (mine := package(module)) in below or mine in FOR_ALL
        if (theirs := package(other)) != mine and theirs and theirs not in FOR_ALL
        if below.get(theirs, len(below)) >= below.get(mine, -1)
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle(imports):
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_no_module_of_ours_is_imported_by_a_name_in_a_string():
    # The server of imported libraries is given their names, and is a program without this library.
    for path in {*SCRIPTS.rglob("*.py")} - {LIBRARY / "preload" / "server.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called.split(".")[-1] not in ("import_module", "__import__"), path
