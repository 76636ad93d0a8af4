"""GGUF files: weights are read from their blocks, everything else is written down once.

`describe` makes a folder that the other loaders know: `config.json` and the tokenizer, links to the
files, and an index that says which tensors make which weight. No weight is
converted on disk: a job dequantizes those of its layers while it loads them.
"""

from __future__ import annotations

import os
from pathlib import Path

from outlier_atlas.checkpoint.gguf import configuration, file, tensors, tokenizer
from outlier_atlas.files import replacing_folder
from outlier_atlas.sanitize import gist


def describe(source: Path, folder: Path) -> None:
    """Make the folder of the model in a GGUF file.

    Args:
        source: the file, or a part of a split one.
        folder: is there whole or not at all.

    Raises:
        ValueError: the file is missing, damaged or no GGUF, or holds something that would be lost,
            or lacks something that would be invented; one sentence that names it.
    """
    read = file.read(source)
    try:
        config = configuration.configuration(read)
        weights = tensors.weights_of(read, config)
    except (ArithmeticError, AssertionError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{source}: its metadata describes no model that can be built ({gist(error)})"
        ) from error
    made = tokenizer.tokenizer(read)
    with replacing_folder(folder) as target:
        target.mkdir()
        config.save_pretrained(target)
        made.save_pretrained(target)
        tensors.write_index(target, read, weights)
        for part in read.parts:
            (target / part.name).symlink_to(_link(part, folder))


def _link(part: Path, folder: Path) -> str:
    """Relative where both move together, as a folder with its `resources/` does."""
    whole = part.resolve()
    base = folder.resolve().parent.parent
    near = whole.is_relative_to(base) or whole.is_relative_to(base.parent)
    return os.path.relpath(whole, folder.resolve()) if near else str(whole)
