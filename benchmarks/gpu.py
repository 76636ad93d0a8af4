"""The engine on one device, with a checkpoint of the shape of Qwen3-30B-A3B and random weights.

    .venv/bin/python benchmarks/gpu.py [--layers 6] [--groups 3] [--sequences 8] [--tokens 2048]
    .venv/bin/python benchmarks/gpu.py --parts speed [--speed 4 64] [--pairs 5]
    .venv/bin/python benchmarks/gpu.py --device cpu        a tiny shape, which tries the script out

A decoder layer of this shape has 1.2 GiB of weights in bfloat16, 128 experts among them; the whole
model has 48. The checkpoint is written layer by layer into a temporary folder (`TMPDIR` says where)
without the head, which the engine does not read. Each layer group is a job: its load time, tokens
per second with the sites written to Zarr, and the peak of the device's memory against the plan (on
the CPU, of the process). Then the whole decoder runs on the device with plain hooks, in the same
batches, and every value of the store is compared with it. For the cause of a difference, the first
batch is run once more, and its first sequence alone: there are kernels that do not repeat their
sums, and kernels whose sums depend on the shape.

`--parts speed` runs all layers in one layer group, for each number of sequences of `--speed`: two
sites stored, and summaries only (`store: []`), against the bare forward pass of the same batches,
in turn; the goal is 0.90 of its tokens per second, that is a ratio of 1.11. Then the way of the
script that began this project: a forward pass for every eight layers, with copies to the host.
Last, the share of copies to the host that run while the device computes, from a trace.
"""

import argparse
import dataclasses
import gc
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from paired import measure
from pipeline import Run, config
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig

from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.devices.gpus import visible_gpus
from outlier_atlas.devices.leases import devices
from outlier_atlas.extraction.capture import LayerGroup
from outlier_atlas.extraction.compute import load
from outlier_atlas.extraction.stream import stream
from outlier_atlas.extraction.work import Work
from outlier_atlas.files import read_record
from outlier_atlas.loading.partial import load_layers
from outlier_atlas.plan.requirements import Plan, plan
from outlier_atlas.roles.architecture import describe
from outlier_atlas.store.layout import Layout
from outlier_atlas.units import shown

SITES = ["attn_in", "mlp_in", "resid_post"]
SHAPE = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-6,
}  # fmt: skip
TINY = SHAPE | {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    asked = _asked(arguments)
    if asked.device == "cuda" and not visible_gpus():
        print("no CUDA device here: nothing is measured; --device cpu tries the script out")
        return
    with tempfile.TemporaryDirectory() as temporary, devices(asked.device, 1, "gpu.py") as where:
        model = Path(temporary) / "model"
        write_checkpoint(model, asked.layers, TINY if asked.device == "cpu" else SHAPE)
        run = _prepared(Path(temporary), model, asked)
        print(f"{_name(where[0])}, torch {torch.__version__}, bfloat16, batches of {asked.batch}")
        planned = _plan(run, asked.tokens)
        if "exact" in asked.parts:
            for group in range(asked.groups):
                _measure(run, group, planned, where)
            compare(run, model, where[0])
        if "speed" in asked.parts:
            for sequences in asked.speed:
                Speed(Path(temporary) / f"speed-{sequences}", model, sequences, asked, where).all()


def _asked(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048, help="in each sequence")
    parser.add_argument("--batch", type=int, default=2, help="sequences in a forward pass")
    parser.add_argument(
        "--parts", nargs="+", choices=["exact", "speed"], default=["exact", "speed"]
    )
    parser.add_argument("--speed", type=int, nargs="+", default=[4, 64], help="sequences")
    parser.add_argument("--pairs", type=int, default=5)
    return parser.parse_args(arguments)


def write_checkpoint(folder: Path, layers: int, shape: dict) -> None:
    """A file for the embedding and one for each layer: no more than one is in memory at a time."""
    Qwen3MoeConfig(
        **shape, num_hidden_layers=layers, bos_token_id=0, eos_token_id=1, dtype="bfloat16",
        architectures=["Qwen3MoeForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    hidden = shape["hidden_size"]
    outer = {
        "model.embed_tokens.weight": _random(shape["vocab_size"], hidden),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
    }
    places = _write(folder, "model-outer.safetensors", outer)
    for layer in range(layers):
        weights = _layer(shape, f"model.layers.{layer}")
        places |= _write(folder, f"model-{layer:05}.safetensors", weights)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write(folder: Path, name: str, weights: dict[str, torch.Tensor]) -> dict[str, str]:
    save_file(weights, folder / name, metadata={"format": "pt"})
    return dict.fromkeys(weights, name)


def _layer(shape: dict, path: str) -> dict[str, torch.Tensor]:
    """The weights of a layer as they are published: each expert for itself."""
    hidden, head = shape["hidden_size"], shape["head_dim"]
    queries, keys = (shape[f"num_{kind}_heads"] * head for kind in ("attention", "key_value"))
    experts, inner = shape["num_experts"], shape["moe_intermediate_size"]
    sizes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate": (experts, hidden),
    }
    for expert in range(experts):
        sizes[f"mlp.experts.{expert}.gate_proj"] = (inner, hidden)
        sizes[f"mlp.experts.{expert}.up_proj"] = (inner, hidden)
        sizes[f"mlp.experts.{expert}.down_proj"] = (hidden, inner)
    norms = {
        "self_attn.q_norm": head, "self_attn.k_norm": head,
        "input_layernorm": hidden, "post_attention_layernorm": hidden,
    }  # fmt: skip
    weights = {f"{path}.{name}.weight": _random(*size) for name, size in sizes.items()}
    for name, size in norms.items():
        weights[f"{path}.{name}.weight"] = torch.ones(size, dtype=torch.bfloat16)
    return weights


def _random(*size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.bfloat16).normal_(std=0.02)


def _prepared(
    folder: Path, model: Path, asked: argparse.Namespace, extraction: dict | None = None
) -> Run:
    draw = np.random.default_rng(0)
    vocabulary = load_config(model).vocab_size
    rows = [draw.integers(2, vocabulary, asked.tokens).tolist() for _ in range(asked.sequences)]
    extraction = {"sites": SITES, "layer_groups": asked.groups, "verify": "never",
                  "advanced": {"chunk_tokens": asked.tokens}} | (extraction or {})  # fmt: skip
    execution = {"batch_size": asked.batch, "device": asked.device}
    run = Run(
        folder, config(model, rows, folder / "data", extraction=extraction, execution=execution)
    )
    run.prepare()
    return run


class Speed:
    """One layer group of all layers: how fast it runs in the engine, bare, and in another way.

    Args:
        folder: folder for the stores.
        model: folder of the checkpoint.
        sequences: number of sequences.
        asked: the arguments of the command.
        where: devices.
    """

    def __init__(
        self, folder: Path, model: Path, sequences: int, asked: argparse.Namespace, where: list[str]
    ) -> None:
        self.folder, self.where, self.asked = folder, where, asked
        self.title = f"{sequences} x {asked.tokens} tokens"
        self.runs = {
            name: _prepared(
                folder / name, model,
                argparse.Namespace(**vars(asked) | {"groups": 1, "sequences": sequences}),
                {"sites": SITES[:2], "store": stored},
            )
            for name, stored in (("stored", "all"), ("summaries", []))
        }  # fmt: skip
        started = time.perf_counter()
        self.group = self._load("stored")
        seconds = time.perf_counter() - started
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        print(f"loading: {size / seconds / 1e9:.2f} GB/s ({shown(size)} in {seconds:.1f} s)")
        tokens = TokenStore.open(self.runs["stored"].tokens)
        ids = np.stack([tokens.sequence(i) for i in range(tokens.sequences)]).astype(np.int64)
        self.batches = torch.from_numpy(ids).split(asked.batch)

    def all(self) -> None:
        """Measure everything."""
        for name, what in (("stored", "two sites stored"), ("summaries", "summaries only")):
            self._stream(name)  # the first pass loads kernels, and compiles
            measure(
                f"{self.title}, {what} / bare forward pass",
                lambda name=name: self._stream(name), self._bare,
                goal=1 / 0.9, pairs=self.asked.pairs,
            )  # fmt: skip
        measure(
            f"{self.title}, a forward pass for every eight layers / bare forward pass",
            self._eight_layers, self._bare, pairs=self.asked.pairs,
        )  # fmt: skip
        self._overlap()

    def _load(self, name: str) -> LayerGroup:
        job, work, missing = self._work(name)
        return load(job, work, missing, self.where)

    def _work(self, name: str) -> tuple:
        run = self.runs[name]
        threads = torch.get_num_threads()
        job = dataclasses.replace(run.job(0, 0), threads=threads, verify="never")
        work = Work.of(job.run, 0, 0)
        return job, work, work.missing(job.run.commits(), job.batch_size)

    def _stream(self, name: str) -> float:
        run = self.runs[name]
        for path in (run.stored.commit_files, run.folder / "summaries"):
            shutil.rmtree(path, ignore_errors=True)
        job, work, missing = self._work(name)
        started = time.perf_counter()
        stream(job, work, missing, self.group, self.where[0])
        return time.perf_counter() - started

    def _bare(self) -> float:
        decoder = self.group.modules[0]
        _synchronize()
        started = time.perf_counter()
        with torch.inference_mode():
            for batch in self.batches:
                decoder(input_ids=batch.to(self.where[0]), use_cache=False)
        _synchronize()
        return time.perf_counter() - started

    def _eight_layers(self) -> float:
        decoder = self.group.modules[0]
        blocks = [m for m in decoder.modules() if type(m).__name__.endswith("DecoderLayer")]
        out = self.folder / "eight"
        out.mkdir(exist_ok=True)
        started = time.perf_counter()
        for first in range(0, len(blocks), 8):
            for number, batch in enumerate(self.batches):
                saved: dict[str, torch.Tensor] = {}
                hooks = [
                    norm.register_forward_hook(_keep(saved, f"{layer} {norm_name}"))
                    for layer, block in enumerate(blocks[first : first + 8], first)
                    for norm_name, norm in block.named_children()
                    if norm_name in ("input_layernorm", "post_attention_layernorm")
                ]
                with torch.inference_mode():
                    decoder(input_ids=batch.to(self.where[0]), use_cache=False)
                for hook in hooks:
                    hook.remove()
                torch.save(saved, out / f"{first}-{number}.pt")
        return time.perf_counter() - started

    def _overlap(self) -> None:
        """Print the share of the time of copies to the host in which the device computes."""
        if not self.where[0].startswith("cuda"):
            print("overlap of copies: measured on CUDA only")
            return
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            self._stream("stored")
        spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for event in trace.events():
            if "Memcpy DtoH" in event.name or event.device_type.name == "CUDA":
                is_copy = "Memcpy DtoH" in event.name
                spans[is_copy].append((event.time_range.start, event.time_range.end))
        copying, both = covered(spans[True]), covered_twice(spans[True], spans[False])
        print(
            f"{self.title}: {copying / 1e3:,.0f} ms of copies to the host, "
            f"{both / max(copying, 1e-9):.1%} of them while the device computes"
        )


def _keep(saved: dict[str, torch.Tensor], name: str):
    return lambda module, args, output: saved.update({name: output.detach().cpu()})


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def covered_twice(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> float:
    """Return the length of what two unions of intervals share."""
    return covered(a) + covered(b) - covered([*a, *b])


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"


def _plan(run: Run, tokens: int) -> Plan:
    layout = Layout.from_record(read_record(run.store_record))
    size = run.job(0, 0).batch_size
    model = read_record(run.model_record)
    return plan(layout, model, run.resources, size, tokens, gathers=False, trust_remote_code=False)


def _measure(run: Run, group: int, planned: Plan, where: list[str]) -> None:
    """Run a layer group as a job does, and print what it took."""
    on_cuda = where[0].startswith("cuda")
    if on_cuda:
        gc.collect()  # the layer group before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    job = dataclasses.replace(run.job(group, 0), threads=torch.get_num_threads(), verify="never")
    work = Work.of(job.run, group, 0)
    missing = work.missing(job.run.commits(), job.batch_size)
    started = time.perf_counter()
    layer_group = load(job, work, missing, where)
    took = time.perf_counter() - started
    _warm_up(layer_group, work, job.batch_size)
    loaded = time.perf_counter()
    stream(job, work, missing, layer_group, where[0])
    done = time.perf_counter()
    expected = planned.groups[group]
    peak = torch.cuda.max_memory_allocated() if on_cuda else _process_peak()
    plan_of_peak = expected.device if on_cuda else expected.host_alone
    print(
        f"layers {work.span}: {shown(expected.weights)} loaded in {took:.1f} s, "
        f"{work.tokens.tokens / (done - loaded):,.0f} tokens/s; peak {shown(peak)}, "
        f"planned {shown(plan_of_peak)}: {peak / plan_of_peak:.3f} of the plan"
    )


def _warm_up(layer_group: LayerGroup, work: Work, size: int) -> None:
    """The first forward pass of a process loads kernels."""
    shape = (size, len(work.tokens.sequence(0)))
    batch = torch.zeros(shape, dtype=torch.long)
    if work.group:
        batch = torch.zeros(*shape, work.layout.hidden_size)
    layer_group.run(batch, lambda tap, tensor: None)
    _synchronize()


def _process_peak() -> int:
    """The most memory that this process ever had, in bytes; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare(run: Run, model: Path, where: str) -> None:
    """Compare the store with the whole decoder with plain hooks, in the same batches."""
    whole = _whole(model, where)
    tokens, size = TokenStore.open(run.tokens), run.settings.execution.batch_size
    stored = {site: run.array(site) for site in SITES}
    ids = np.stack([tokens.sequence(i) for i in range(tokens.sequences)]).astype(np.int64)
    length, differing, count = ids.shape[1], {}, 0
    for first in range(0, len(ids), size):
        batch = torch.from_numpy(ids[first : first + size])
        for (site, layer), want_BTC in _values(whole, batch).items():
            rows = slice(first * length, (first + len(batch)) * length)
            got = torch.from_numpy(stored[site][layer, rows]).reshape(want_BTC.shape)
            count += got.numel()
            if not torch.equal(got, want_BTC):
                most = float((got - want_BTC).abs().max())
                differing[site, layer] = max(most, differing.get((site, layer), 0.0))
    groups = run.settings.extraction.layer_groups
    said = "equals" if not differing else "DIFFERS FROM"
    print(f"the chain of {groups} layer groups {said} the whole model: {count:,} values compared")
    for (site, layer), most in differing.items():
        print(f"  {site} of layer {layer}: by up to {most:g}")
    _look_for_the_cause(whole, torch.from_numpy(ids[:size]))


def _whole(model: Path, where: str) -> LayerGroup:
    described = describe(load_config(model))
    layers = range(described.layers)
    decoder = load_layers(model, load_config(model), described, layers, "bfloat16").to(where)
    taps = [t for layer in layers for t in described.taps[layer].values() if t.site in SITES]
    return LayerGroup(decoder, described, layers, taps)


def _values(whole: LayerGroup, batch: torch.Tensor) -> dict[tuple[str, int], torch.Tensor]:
    """The sites of a batch on the host, in float32, by site and layer."""
    values: dict[tuple[str, int], torch.Tensor] = {}
    whole.run_directly(
        batch, lambda tap, x_BTC: values.update({(tap.site, tap.layer): x_BTC.float().cpu()})
    )
    return values


def _look_for_the_cause(whole: LayerGroup, batch: torch.Tensor) -> None:
    """Whether the device's kernels repeat their sums, and whether these depend on the shape."""
    once, again = _values(whole, batch), _values(whole, batch)
    alone = _values(whole, batch[:1])
    repeats = all(torch.equal(once[key], again[key]) for key in once)
    most = max(float((once[key][:1] - alone[key]).abs().max()) for key in once)
    print(f"the same batch again: {'the same bits' if repeats else 'other bits'}")
    print(f"its first sequence alone: {f'differs by up to {most:g}' if most else 'the same bits'}")


if __name__ == "__main__":
    main()
