"""GGUF files: dequantized once into a safetensors folder that everything else reads."""

from __future__ import annotations

import logging
from pathlib import Path

from outlier_atlas.files import replacing_folder
from outlier_atlas.visible import gist

log = logging.getLogger(__name__)


def dequantize(source: Path, folder: Path) -> None:
    """Write the model of a GGUF file as float32 safetensors, with its configuration and tokenizer.

    The folder is there whole or not at all.

    Raises:
        ValueError: the file is missing, no GGUF, or holds no model that transformers can read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if not source.is_file():
        raise ValueError(f"{source}: no such GGUF file")
    with source.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{source}: not a GGUF file")
    where = {"gguf_file": source.name, "local_files_only": True}
    with replacing_folder(folder) as target:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
            model = AutoModelForCausalLM.from_pretrained(
                source.parent,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                **where,
            )
        except Exception as error:  # readers of a damaged file raise what they like
            raise ValueError(
                f"{source}: transformers cannot read this GGUF file ({gist(error)})"
            ) from error
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    log.info("%s: dequantized to float32", source.name)
