"""Tests of the search for the code of a rule's script, which does not parse all of it."""

import ast
from pathlib import Path

import pytest

from outlier_atlas import sources
from outlier_atlas.sources import Sources

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "library" / "deep").mkdir(parents=True)
    for name in ("library/__init__", "library/one", "library/two", "library/deep/__init__"):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "alone.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import alone", {"alone.py"}),
        ("import os, alone as a; import library.two", {"alone.py", "library/two.py"}),
        ("from library import one, two", {"library/one.py", "library/two.py"}),
        ("from library.deep import value", {"library/deep/__init__.py"}),
        ("def f():\n    from library import (  # a comment (of two)\n        one,\n    )\n",
         {"library/one.py"}),
        ("from library import one, \\\n    two", {"library/one.py", "library/two.py"}),
        ("if True:\n\timport alone  # here", {"alone.py"}),
        ('"""Text\nfrom library to alone, import what you like.\n"""\nfrom library import one\n',
         {"library/one.py"}),
        ('"""Text\nimport alone\n"""\nx = "from library import one"', {"alone.py"}),
        ("import os\nfrom pathlib import Path", set()),
    ],
)  # fmt: skip
def test_imports_are_found_in_any_form(folder, source, modules):
    (folder / "script.py").write_text(source)
    found = set(Sources(folder).of("script.py"))
    assert found - {"script.py", "library/__init__.py"} == modules


def test_of_the_library_the_same_is_found_as_by_parsing_it():
    for path in SCRIPTS.rglob("*.py"):
        names = {
            name for node in ast.walk(ast.parse(path.read_text())) for name in sources._names(node)
        }
        modules = {file for name, file in sources._modules(SCRIPTS).items() if name in names}
        assert set(sources._imports(SCRIPTS, path)) == modules, path


def test_the_files_of_all_scripts_are_read_once(folder, monkeypatch):
    reads = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read_bytes(path))
    for name in ("a.py", "b.py"):
        (folder / name).write_text("from library import one, two")
        Sources(folder).digest(name)
    names = sorted(path.stem for path in reads)
    assert names == ["__init__", "a", "b", "one", "two"]
