"""What the scripts of other tools share: arguments, and the same sequences of tokens."""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer


def arguments() -> argparse.Namespace:
    """Return the arguments of a script; the output folder exists."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2048)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    return asked


def sequences_of(asked: argparse.Namespace) -> torch.Tensor:
    """Return the token ids (sequence, token) of the first texts."""
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    ids: list[int] = []
    for path in sorted(asked.texts.iterdir()):
        ids += tokenizer(path.read_text())["input_ids"]
        if len(ids) >= asked.sequences * asked.tokens:
            break
    return torch.tensor(ids[: asked.sequences * asked.tokens]).view(asked.sequences, -1)
