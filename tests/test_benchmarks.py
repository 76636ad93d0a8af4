"""Benchmarks that need what this machine may lack: their own logic, on a tiny shape."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from pipeline import Run
from safetensors.torch import load_file

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """`benchmarks/gpu.py` as a module."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    spec = importlib.util.spec_from_file_location("benchmark_gpu", BENCHMARKS / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TINY = ["--device=cpu", "--layers=3", "--groups=2", "--sequences=3", "--tokens=8", "--batch=2"]
VALUES = 3 * 3 * 8 * 3 * 64
"""Sequences x sites x tokens x layers x channels."""


def test_the_gpu_benchmark_compares_the_chain_with_the_whole_model(gpu, capsys):
    gpu.main(TINY)
    said = capsys.readouterr().out
    assert f"chain of 2 layer groups equals the whole model: {VALUES:,} values" in said
    assert said.count("of the plan") == 2
    assert "the same batch again: the same bits" in said


def test_the_gpu_benchmark_sees_a_single_bit(gpu, capsys, monkeypatch):
    read = Run.array

    def one_changed(run, site):
        values = read(run, site)
        if site == "mlp_in":
            values[1, 17, 5] += 0.25
        return values

    monkeypatch.setattr(Run, "array", one_changed)
    gpu.main(TINY)
    said = capsys.readouterr().out
    assert "DIFFERS FROM the whole model" in said
    assert "mlp_in of layer 1: by up to 0.25" in said
    assert said.count("by up to") == 1


def test_its_checkpoint_has_the_shape_that_transformers_gives_it(gpu, tmp_path):
    from transformers import Qwen3MoeForCausalLM

    gpu.write_checkpoint(tmp_path, 2, gpu.TINY)
    _, info = Qwen3MoeForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert {*info["missing_keys"]} == {"lm_head.weight"}
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 3, "one for what lies around the layers, and one for each"
    assert all(
        tensor.dtype == torch.bfloat16 for file in files for tensor in load_file(file).values()
    )


def test_its_large_shape_is_that_of_qwen3_30b_a3b(gpu):
    """30.5 billion parameters in 48 layers, as published; the head has as many as the embedding."""
    from transformers import Qwen3MoeConfig, Qwen3MoeModel

    with torch.device("meta"):
        model = Qwen3MoeModel(Qwen3MoeConfig(**gpu.SHAPE, num_hidden_layers=1))
    embedding = model.embed_tokens.weight.numel()
    layer = sum(weight.numel() for weight in model.layers[0].parameters())
    assert round((2 * embedding + 48 * layer) / 1e9, 1) == 30.5


def test_without_a_cuda_device_it_measures_nothing(gpu, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "visible_gpus", lambda: [])
    gpu.main([])
    assert "no CUDA device here" in capsys.readouterr().out
