"""The check of docstrings that `make lint` runs."""

import pytest
import words

SOURCE = '''"""{module}"""

LIMIT = 3
"""{constant}"""


class Reader:
    """{kind}"""

    rows: int
    """{field}"""

    @property
    def size(self) -> int:
        """{size}"""

    def read(self) -> int:
        """{read}"""
'''
GOOD = {
    "module": "Rows of a file.",
    "constant": "Largest number of rows.",
    "kind": "A reader of rows.",
    "field": "Number of rows.",
    "size": "The bytes of the file.",
    "read": "Read a row.",
}


def test_a_verb_or_the_noun_that_is_defined_comes_first():
    assert words.docstring_faults(SOURCE.format(**GOOD), "m.py") == []


@pytest.mark.parametrize(
    ("place", "first", "line"),
    [
        ("module", "What a file has.", 1),
        ("constant", "Of the largest rows.", 4),
        ("kind", "Whose rows are read.", 8),
        ("field", "Those of the file.", 11),
        ("size", "Whether it is large.", 15),
        ("read", "That a row is read.", 18),
        ("read", "The next row.", 18),
        ("read", "Whether a row is left.", 18),
        ("read", "The same of a row.\n\n        Read it.", 18),
    ],
)
def test_other_beginnings_are_refused(place, first, line):
    (fault,) = words.docstring_faults(SOURCE.format(**GOOD | {place: first}), "m.py")
    assert fault.startswith(f"m.py:{line}: docstring begins with '{first.split()[0]}")
