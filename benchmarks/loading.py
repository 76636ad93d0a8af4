"""Loading of quantized checkpoints against reading the same bytes.

    .venv/bin/python benchmarks/loading.py [--pairs 10] [--threads 2] [--formats fp8,mxfp4,...]

Synthetic checkpoints of some hundred MB are written to a temporary folder. `load_model` builds the
model and loads all of its layers in bfloat16. The other side reads the files with plain `read` into
a buffer that has been used before. The files are in the page cache, except in the lines marked
"from disk". The last line of each format compares with what no loader can avoid: to read the bytes
and to write as many bytes as the weights have to new memory, in all threads.

fp8      two layers in the shape of Qwen3-30B-A3B with 64 experts, blocks of 128 x 128
mxfp4    one layer in the shape of gpt_oss with 32 experts
q4_k     a llama whose matrices are Q4_K, those of values and of down projections Q6_K
q8_0     the same llama in Q8_0
builtin  the built-in model (Q4_1), 98 MB: building a model of 272 weights takes most of the time
plain    a mixture in bfloat16, which is copied into fused tensors; no goal
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import gguf
import gguf_files
import numpy as np
import quantized
import real
import tiny
import torch
from paired import measure
from safetensors.torch import save_file
from synthetic import mixture
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, Qwen3MoeConfig

from outlier_atlas.checkpoint import gguf as described_gguf
from outlier_atlas.checkpoint.folder import weight_files
from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.conversion import memory
from outlier_atlas.loading.partial import load_model, weight_bytes
from outlier_atlas.roles.architecture import describe

GOAL = 1.5
COLD_PAIRS = 4
RANDOM = np.random.default_rng(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--folder", type=Path, help="for temporary files, 3 GB")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"{asked.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        for name in asked.formats.split(","):
            folder = FORMATS[name](Path(temporary) / name)
            compare(name, folder, asked.pairs, asked.threads)


def compare(name: str, folder: Path, pairs: int, threads: int) -> None:
    files = [(folder / file).resolve() for file in weight_files(folder)]
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    load = Loader(folder)
    size = load(weight_bytes)  # compiles loops, imports classes
    on_disk = sum(file.stat().st_size for file in files)
    buffer = memoryview(bytearray(b"1") * max(file.stat().st_size for file in files))
    read = lambda: read_files(files, buffer)  # noqa: E731
    read()
    print(f"{name}: {on_disk / 1e6:.0f} MB on disk, {size / 1e6:.0f} MB of weights")
    goal = None if name in ("plain", "builtin") else GOAL
    result = measure(f"{name}: load over read", load, read, goal=goal, pairs=pairs)
    user, system = (statistics.median(times) for times in zip(*load.cpu[-pairs:], strict=True))
    print(
        f"  {on_disk / min(result.ours) / 1e9:.2f} GB/s at best; CPU seconds of a load: "
        f"{user:.2f} user, {system:.2f} system"
    )
    if name != "plain":
        cold = {"ours": lambda: dropped(files, load), "other": lambda: dropped(files, read)}
        measure(f"{name}: load over read, from disk", **cold, goal=goal, pairs=COLD_PAIRS)
    bound = lambda: read() + fill(size, threads)  # noqa: E731
    measure(f"{name}: load over read and write", load, bound, pairs=min(pairs, 5))


class Loader:
    """Loads the whole model of a folder when it is called, and returns the seconds.

    Attributes:
        cpu: seconds of the processor in user code and in the system, of each load.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._config = folder, load_config(folder)
        self._architecture = describe(self._config)
        self.cpu: list[tuple[float, float]] = []

    def __call__(self, value: Callable[[torch.nn.Module], float] | None = None) -> float:
        architecture, before, started = self._architecture, os.times(), time.perf_counter()
        layers = range(architecture.layers)
        model = load_model(self._folder, self._config, architecture, layers, "bfloat16")
        seconds, after = time.perf_counter() - started, os.times()
        self.cpu.append((after.user - before.user, after.system - before.system))
        return seconds if value is None else value(model)


def read_files(files: list[Path], buffer: memoryview) -> float:
    started = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            place = 0
            while count := file.readinto(buffer[place:]):
                place += count
    return time.perf_counter() - started


def fill(size: int, threads: int) -> float:
    """Write once to new memory in large pages."""
    started = time.perf_counter()
    values = memory.empty((size // 8,), torch.int64).numpy()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.fill(1), np.array_split(values, 2 * threads)))
    return time.perf_counter() - started


def dropped(files: list[Path], side: Callable[[], float]) -> float:
    """Drop the files from the page cache and run a side."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return side()


# --- Checkpoints ---------------------------------------------------------------------------------


def fp8(folder: Path) -> Path:
    layers, hidden, inner, experts, heads = 2, 2048, 768, 64, 32
    config = Qwen3MoeConfig(
        vocab_size=4096, hidden_size=hidden, num_hidden_layers=layers, head_dim=128,
        num_attention_heads=heads, num_key_value_heads=4, num_experts=experts,
        num_experts_per_tok=8, moe_intermediate_size=inner, dtype=torch.bfloat16,
        architectures=["Qwen3MoeForCausalLM"],
    )  # fmt: skip
    pool = torch.randn(2**24).mul_(100).to(torch.float8_e4m3fn)

    def codes(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        start = int(RANDOM.integers(len(pool) - rows * columns))
        scales = torch.rand(-(-rows // 128), -(-columns // 128)) * 1e-3
        stored = pool[start : start + rows * columns].clone().reshape(rows, columns)
        return {f"{name}.weight": stored, f"{name}.weight_scale_inv": scales}

    files = {"model-0.safetensors": {
        "model.embed_tokens.weight": torch.zeros(4096, hidden, dtype=torch.bfloat16),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
    }}  # fmt: skip
    for layer in range(layers):
        prefix, width = f"model.layers.{layer}.", heads * 128
        tensors = codes(f"{prefix}self_attn.q_proj", width, hidden)
        tensors |= codes(f"{prefix}self_attn.o_proj", hidden, width)
        for name in "kv":
            tensors |= codes(f"{prefix}self_attn.{name}_proj", 512, hidden)
        for expert in range(experts):
            for name in ("gate", "up"):
                tensors |= codes(f"{prefix}mlp.experts.{expert}.{name}_proj", inner, hidden)
            tensors |= codes(f"{prefix}mlp.experts.{expert}.down_proj", hidden, inner)
        plain = {"mlp.gate": (experts, hidden), "input_layernorm": (hidden,),
                 "post_attention_layernorm": (hidden,), "self_attn.q_norm": (128,),
                 "self_attn.k_norm": (128,)}  # fmt: skip
        for name, shape in plain.items():
            tensors[f"{prefix}{name}.weight"] = torch.ones(shape, dtype=torch.bfloat16)
        files[f"model-{layer + 1}.safetensors"] = tensors
    settings = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                "weight_block_size": [128, 128]}  # fmt: skip
    return _write(folder, config, files, settings)


def mxfp4(folder: Path) -> Path:
    config = GptOssConfig(
        vocab_size=4096, hidden_size=2880, intermediate_size=2880, num_hidden_layers=1,
        num_attention_heads=64, num_key_value_heads=8, head_dim=64, num_local_experts=32,
        num_experts_per_tok=4, dtype=torch.bfloat16, architectures=["GptOssForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        model = GptOssForCausalLM(config)
    tensors = {}
    for name, weight in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inward, outward = weight.shape
            shape = (experts, outward, inward // 32)
            blocks = RANDOM.integers(0, 256, (*shape, 16), np.uint8)
            tensors[f"{name}_blocks"] = torch.from_numpy(blocks)
            tensors[f"{name}_scales"] = torch.from_numpy(RANDOM.integers(118, 123, shape, np.uint8))
        else:
            tensors[name] = torch.zeros(weight.shape, dtype=torch.bfloat16)
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    return _write(folder, config, {"model-0.safetensors": tensors}, settings)


def _write(
    folder: Path, config: Any, files: dict[str, dict[str, torch.Tensor]], settings: dict[str, Any]
) -> Path:
    folder.mkdir()
    config.save_pretrained(folder)
    tiny.tokenizer(folder)
    for name, tensors in files.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    index = {key: name for name, tensors in files.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    quantized.say(folder, settings)
    return folder


def llama(folder: Path, kinds: Callable[[str], str]) -> Path:
    """Write a GGUF file with random blocks."""
    layers, hidden, inner, narrow = 12, 2048, 8192, 512
    config = LlamaConfig(
        vocab_size=gguf_files.VOCABULARY, hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        max_position_embeddings=2048,
    )  # fmt: skip
    folder.mkdir()
    path = folder / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    metadata = gguf_files.metadata("llama", SimpleNamespace(config=config))
    for key, value in (metadata | gguf_files.vocabulary("llama")).items():
        gguf_files._add(writer, key, value)
    shapes = {
        "attn_q": (hidden, hidden), "attn_k": (narrow, hidden), "attn_v": (narrow, hidden),
        "attn_output": (hidden, hidden), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }  # fmt: skip
    norms = ["output_norm", *(f"blk.{layer}.{name}_norm" for layer in range(layers)
                              for name in ("attn", "ffn"))]  # fmt: skip
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", np.zeros((config.vocab_size, hidden), np.float32))
    for layer in range(layers):
        for name, shape in shapes.items():
            number = gguf.GGMLQuantizationType[kinds(name)]
            values, size = gguf.GGML_QUANT_SIZES[number]
            # Bytes below 0x3C, so that no scale is NaN or infinite.
            raw = RANDOM.integers(0, 0x3C, (shape[0], shape[1] // values * size), np.uint8)
            writer.add_tensor(f"blk.{layer}.{name}.weight", raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    described_gguf.describe(path, folder / "model")
    return folder / "model"


FORMATS: dict[str, Callable[[Path], Path]] = {
    "fp8": fp8,
    "mxfp4": mxfp4,
    "q4_k": lambda folder: llama(
        folder, lambda name: "Q6_K" if name in ("attn_v", "ffn_down") else "Q4_K"
    ),
    "q8_0": lambda folder: llama(folder, lambda name: "Q8_0"),
    "builtin": lambda folder: real.built_in(ROOT / "resources"),
    "plain": lambda folder: mixture(folder, 2, 2048, 32, vocab=4096),
}


if __name__ == "__main__":
    main()
