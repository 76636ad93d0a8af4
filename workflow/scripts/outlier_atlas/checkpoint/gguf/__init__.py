"""GGUF files: weights are read from the file's blocks; all other data is converted once.

`describe` writes a folder that the other loaders can read. It contains `config.json`, the
tokenizer, links to the GGUF files, and an index that maps each weight to its tensors. No weight is
converted on disk: a job dequantizes the weights of its layers while it loads them.
"""

from __future__ import annotations

import os
from pathlib import Path

from outlier_atlas.checkpoint.gguf import configuration, file, tensors, tokenizer
from outlier_atlas.files import replacing_folder
from outlier_atlas.sanitize import gist


def describe(source: Path, folder: Path) -> None:
    """Write the folder of the model in a GGUF file.

    Args:
        source: the GGUF file, or one part of a split file.
        folder: folder to write; it exists complete or not at all.

    Raises:
        ValueError: the file is missing, damaged or not GGUF; or it has an entry that would be
            ignored, or lacks an entry that would be guessed. One sentence names the entry.
    """
    gguf_file = file.read(source)
    try:
        config = configuration.configuration(gguf_file)
        weights = tensors.match_weights(gguf_file, config)
    except (ArithmeticError, AssertionError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{source}: its metadata describes no model that can be built ({gist(error)})"
        ) from error
    converted = tokenizer.tokenizer(gguf_file)
    with replacing_folder(folder) as target:
        target.mkdir()
        config.save_pretrained(target)
        converted.save_pretrained(target)
        tensors.write_index(target, gguf_file, weights)
        for part in gguf_file.parts:
            (target / part.name).symlink_to(_link(part, folder))


def _link(part: Path, folder: Path) -> str:
    """Return the target of a link to a part: relative if both move together, otherwise absolute.

    A project folder and its `resources/` move together.
    """
    resolved = part.resolve()
    base = folder.resolve().parent.parent
    movable = resolved.is_relative_to(base) or resolved.is_relative_to(base.parent)
    return os.path.relpath(resolved, folder.resolve()) if movable else str(resolved)
