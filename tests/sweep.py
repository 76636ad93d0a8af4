"""Every decoder type of the installed transformers, tiny and with random weights, through a run.

    .venv/bin/python tests/sweep.py [--jobs N] [TYPE ...]

For each type the values of all sites in one and in three layer groups are compared, bit for bit,
with hooks on a model that has run nothing before; the losses with the cross-entropy of its logits,
the sink metric with its eager attention maps. Earlier positions must not depend on later tokens,
and the limit on positions must be that of the model. One line for each type, and the counts; exit
status 1 if something differs or ends otherwise than in a sentence. Each type has a process of its
own.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import transformers
from pipeline import Run, config, hooked
from shrunk import shrunk
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.roles import cached_architecture
from outlier_atlas.roles.architecture import Architecture, describe
from outlier_atlas.settings.sites import ATTN_SINK, CHANNEL_SITES, SITES, TOKEN_LOSS

SECONDS = 240
"""Of one type, at most."""

LENGTHS = (12, 30, 12)
"""Tokens of the sequences: a longer one before a shorter one, for what a model keeps of it."""

OUTCOMES = ("equal", "refused", "not built", "differs", "fails")
"""A type that is not built has no tiny configuration here; the last two end in exit status 1."""


def types() -> list[str]:
    """Model types that transformers generates text with."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def check(model_type: str, folder: Path) -> tuple[str, str]:
    """The outcome for a type, and what there is to say of it."""
    try:
        small = shrunk(model_type)
        model = tiny.perturbed(small)
        model.save_pretrained(folder / "model")
        tiny.tokenizer(folder / "model")
        with torch.inference_mode():
            model(torch.arange(3, 15)[None], use_cache=False)
        del model
    except Exception as error:  # a tiny configuration that the class does not accept
        return "not built", _line(error)
    try:
        architecture = describe(load_config(folder / "model"))
        return _compare(folder, architecture)
    except ValueError as error:
        return "refused", _line(error)


def _compare(folder: Path, architecture: Architecture) -> tuple[str, str]:
    cached_architecture.describe = lambda *_: architecture  # once is enough
    limit = architecture.positions
    generator = np.random.default_rng(0)
    longest = limit.tokens if limit and limit.fixed else 30
    rows = [generator.integers(3, 300, min(n, longest)).tolist() for n in LENGTHS]
    sites = [site for site in SITES if all(site in taps for taps in architecture.taps)]
    perplexity = architecture.head.unsupported is None
    groups = (1,) if architecture.one_group else (1, 3)
    alone = _alone(folder / "model")
    faults: list[str] = []
    want: dict[str, Any] = {}
    for count in groups:
        made = config(
            folder / "model", rows, folder / "data",
            run={"name": f"in-{count}"},
            extraction={"sites": sites, "layer_groups": count,
                        "perplexity": perplexity
                        and (count == 1 or not architecture.end_reads_more)},
            execution={"batch_size": 1},
        )  # fmt: skip
        made["model"]["dtype"] = "float32"
        run = Run(folder, made)
        run.prepare()
        want = want or _wanted(folder / "model", TokenStore.open(run.tokens), sites, perplexity)
        run.extract()
        for site, values in want.items():
            if site == TOKEN_LOSS and not run.settings.extraction.perplexity:
                continue
            if not np.array_equal(_array(run, site), values, equal_nan=True):
                faults.append(f"{site} in {count} layer groups")
        if count == 1 and ATTN_SINK in sites:
            faults += _sinks(folder / "model", run, rows)
    faults += _later_tokens(alone, rows[1])
    faults += _positions(folder, alone, architecture)
    held = f"{len(sites)} sites, {'no ' * (not perplexity)}losses, groups {groups[-1]}"
    why = f"; {architecture.one_group}" if architecture.one_group else ""
    return ("differs", "; ".join(faults)) if faults else ("equal", held + why)


def _array(run: Run, site: str) -> Any:
    values = run.array(site)
    return values[:, 0] if site == TOKEN_LOSS else values


def _alone(model: Path, attention: str | None = None) -> Any:
    """A model that has run nothing before."""
    auto = tiny.auto_class(load_config(model))
    more = {} if attention is None else {"attn_implementation": attention}
    return auto.from_pretrained(model, dtype=torch.float32, **more).eval()


@torch.inference_mode()
def _wanted(model: Path, tokens: TokenStore, sites: Sequence[str], losses: bool) -> dict[str, Any]:
    channels = [site for site in sites if site in CHANNEL_SITES]
    parts = [
        hooked(model, "float32", tokens, channels, [range(sequence, sequence + 1)])
        for sequence in range(tokens.sequences)
    ]
    want = {site: np.concatenate([part[site] for part in parts], axis=1) for site in channels}
    if losses:
        found = [_losses(_alone(model), tokens.sequence(s)) for s in range(tokens.sequences)]
        want[TOKEN_LOSS] = np.concatenate(found)
    return want


def _losses(model: Any, sequence: Any) -> Any:
    ids = torch.from_numpy(sequence.astype(np.int64))[None]
    logits = model(ids, use_cache=False).logits[0, :-1].float()
    loss = -logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return np.concatenate([[np.nan], loss.numpy()]).astype(np.float32)


@torch.inference_mode()
def _sinks(model: Path, run: Run, rows: Sequence[Sequence[int]]) -> Iterator[str]:
    """Differences from the metric of eager attention maps, whose last bits are others."""
    values = run.array(ATTN_SINK)
    start = 0
    for row in rows:
        eager = _alone(model, "eager")
        maps = eager(torch.tensor([row]), use_cache=False, output_attentions=True).attentions
        first = int(np.isfinite(values[0, start : start + len(row), 0]).sum())
        if any(name.endswith("sinks") for name, _ in eager.named_parameters()):
            return  # its maps do not show the share that a learned sink takes
        maps = [m for m in maps or () if m is not None and m.dim() == 4]
        for layer, weights in enumerate(maps if len(maps) == len(values) else ()):
            # Among the first tokens alone: each row is normalized again.
            part = weights[0, :, :first, :first]
            if not torch.allclose(part.sum(-1), torch.ones(()), atol=1e-4):
                continue  # a sink beside the tokens takes a share
            mean = part.sum(1) / torch.arange(first, 0, -1)
            got = torch.from_numpy(values[layer, start : start + first])
            if not torch.allclose(got, mean.mT, atol=1e-5):
                yield f"attn_sink of layer {layer}"
                return
        start += len(row)


@torch.inference_mode()
def _later_tokens(model: Any, row: Sequence[int]) -> Iterator[str]:
    """Whether the logits of earlier tokens change with the last one."""
    changed = [*row[:-1], (row[-1] + 7) % 300]
    one, other = (model(torch.tensor([r]), use_cache=False).logits[0, :-1] for r in (row, changed))
    if not torch.allclose(one, other, atol=1e-4, rtol=1e-4):
        yield "earlier tokens depend on later ones"


@torch.inference_mode()
def _positions(folder: Path, model: Any, architecture: Architecture) -> Iterator[str]:
    limit = architecture.positions
    if limit is None:
        return
    for tokens, fits in ((limit.tokens, True), (limit.tokens + 1, not limit.fixed)):
        ids = torch.arange(tokens)[None] % 290 + 3
        try:
            model(ids, use_cache=False)
            ran = True
        except Exception:
            ran = False
        if ran != fits:
            yield f"{tokens} tokens {'run' if ran else 'do not run'} ({limit.key} = {limit.value})"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _apart(model_type: str) -> tuple[str, str, str, float]:
    """`check` in a process of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            signal.alarm(SECONDS)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            try:
                said = "\t".join(check(model_type, Path(name)))
            except BaseException as error:
                said = f"fails\t{_line(error)}"
            os.write(writer, said.encode()[:2000])
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read().decode(errors="replace")
        os.waitpid(child, 0)
    outcome, _, more = (said or f"fails\tno answer within {SECONDS} s").partition("\t")
    return model_type, outcome, more, time.monotonic() - started


def main() -> int:
    """Check the types that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    for module in (
        "extraction.compute",
        "extraction.capture",
        "extraction.loading",
        "extraction.planning.table",
    ):
        import_module(f"outlier_atlas.{module}")  # here, and not in each process
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for model_type, outcome, more, seconds in pool.map(_apart, arguments.types or types()):
            counts[outcome] += 1
            print(f"{model_type:26} {outcome:10} {seconds:4.0f} s  {more}", flush=True)
    print(f"transformers {transformers.__version__}:", end=" ")
    print(", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES))
    return int(counts["differs"] + counts["fails"] > 0)


if __name__ == "__main__":
    sys.exit(main())
