"""The rule graph in the README, from the output of `snakemake --rulegraph mermaid-js`.

`python -m outlier_atlas.rulegraph README.md < GRAPH` writes it (`make docs`). Snakemake draws an
arrow between all rules that share a file. Here an arrow is left out if a longer path connects the
same rules.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)
TARGET = "all"

Edges = frozenset[tuple[str, str]]


def edges(graph: str) -> Edges:
    """Return the pairs (writing rule, reading rule), without the target and without loops.

    Args:
        graph: the graph in Mermaid, as Snakemake prints it.
    """
    names = dict(re.findall(r"^\s*(\w+)\[(\w+)\]$", graph, re.MULTILINE))
    pairs = re.findall(r"^\s*(\w+) --> (\w+)$", graph, re.MULTILINE)
    named = ((names[before], names[after]) for before, after in pairs)
    return frozenset(pair for pair in named if pair[0] != pair[1] and TARGET not in pair)


def reduced(all_edges: Edges) -> Edges:
    """Return the edges without those between rules that a longer path connects."""
    return frozenset(edge for edge in all_edges if not _connected(*edge, all_edges - {edge}))


def _connected(start: str, end: str, through: Edges) -> bool:
    following = {after for before, after in through if before == start}
    return end in following or any(_connected(rule, end, through) for rule in following)


def block(graph: str) -> str:
    """Return the graph as a Mermaid block without colours, so that it has those of the page."""
    lines = [f"    {before} --> {after}" for before, after in sorted(reduced(edges(graph)))]
    return "\n".join(["```mermaid", "flowchart LR", *lines, "```", ""])


def main(page: Path, graph: str) -> None:
    """Replace the Mermaid block of a page with the graph."""
    text = page.read_text("utf-8")
    if len(BLOCK.findall(text)) != 1 or not edges(graph):
        sys.exit(f"{page}: must have one mermaid block, and stdin the output of --rulegraph")
    page.write_text(BLOCK.sub(lambda _: block(graph), text), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin.read())
