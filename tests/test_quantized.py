"""Quantized checkpoints: dequantized exactly into the run's dtype, or refused."""

import json
import re

import numpy as np
import pytest
import quantized
import tiny
import torch
import transformers as t
from pipeline import Run, config, hooked
from safetensors.torch import load_file

from outlier_atlas.checkpoint.folder import weight_files
from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.files import read_record
from outlier_atlas.loading.footprint import sizes
from outlier_atlas.loading.partial import load_layers, weight_bytes
from outlier_atlas.loading.shards import file_bytes
from outlier_atlas.roles.architecture import describe
from outlier_atlas.settings.extraction import even_ranges

ROWS = [[5, 17, 200, 9, 33, 41, 7, 250], [40, 6, 6, 90, 280, 14, 8, 77]]
SITES = ["resid_pre", "attn_in", "attn_hidden", "mlp_in", "mlp_out", "resid_post"]


@pytest.fixture(scope="module", params=quantized.KINDS)
def pair(request, tmp_path_factory):
    return quantized.KINDS[request.param](tmp_path_factory.mktemp("model"))


def loaded(folder, layers, dtype):
    config = load_config(folder)
    return load_layers(folder, config, describe(config), layers, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_those_that_the_codes_stand_for_in_the_dtype_of_the_run(pair, dtype):
    got, want = (
        dict(loaded(folder, range(1, 3), dtype).state_dict())
        for folder in (pair.packed, pair.dense)
    )
    assert got.keys() == want.keys()
    for name, weight in want.items():
        assert got[name].dtype == weight.dtype, name
        assert torch.equal(got[name], weight), name


def test_store_equals_hooks_on_the_whole_dense_model(pair, tmp_path):
    want = None
    for groups in (1, 2, 3):
        data = config(
            pair.packed, ROWS, tmp_path / "data", run={"name": f"in-{groups}"},
            extraction={"sites": SITES, "layer_groups": groups},
        )  # fmt: skip
        run = Run(tmp_path, data)
        run.prepare()
        run.extract()
        if want is None:
            tokens = TokenStore.open(run.tokens)
            want = hooked(pair.dense, "bfloat16", tokens, SITES, [range(0, 1), range(1, 2)])
        for site in SITES:
            got = run.array(site).view(np.uint32)
            assert np.array_equal(got, want[site].view(np.uint32)), (groups, site)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_planned_weights_are_those_that_are_loaded(pair, dtype):
    described = load_config(pair.packed)
    architecture = describe(described)
    planned = sizes(described, architecture, dtype, 16)
    assert planned == sizes(load_config(pair.dense), architecture, dtype, 16)
    for groups in (1, 2, 3):
        for part in even_ranges(4, groups):
            model = loaded(pair.packed, range(*part), dtype)
            assert planned.weights(range(*part)) == weight_bytes(model)


def test_file_bytes_are_those_of_the_packed_weights(pair):
    architecture = describe(load_config(pair.packed))
    by_layer = file_bytes(pair.packed, weight_files(pair.packed), architecture)
    stored = load_file(pair.packed / "model.safetensors")
    for layer in range(4):
        place = re.compile(rf"^(language_model\.)?model\.layers\.{layer}\.")
        ours = [w for name, w in stored.items() if place.match(name)]
        assert by_layer[layer] == sum(w.numel() * w.element_size() for w in ours)


def test_the_architecture_is_that_of_the_plain_model(pair):
    assert describe(load_config(pair.packed)) == describe(load_config(pair.dense))


def fetched(folder, tmp_path):
    run = Run(tmp_path, config(folder, ROWS, tmp_path / "data"))
    run.prepare()
    return run


def test_the_record_names_the_method(tmp_path, llama):
    pair = quantized.mxfp4(tmp_path / "model")
    assert read_record(fetched(pair.packed, tmp_path).model_record)["quantization"] == "mxfp4"
    assert read_record(fetched(llama, tmp_path).model_record)["quantization"] is None


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, r"quantized \('gptq'\)"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, r"quantized \('awq'\)"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"quantized \('bitsandbytes'\)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"quantized \('bitsandbytes'\)"),
        ({"quant_method": "compressed-tensors"}, r"quantized \('compressed-tensors'\)"),
        ({"quant_method": "nobody-knows"}, r"quantized \('nobody-knows'\)"),
        ({"quant_method": "nvfp4"}, r"quantized \('nvfp4'\)"),
        ({"bits": 4}, "has no quant_method"),
        ({}, "has no quant_method"),
        ({"quant_method": ["fp8"]}, "has no quant_method"),
        ({"quant_method": "fp8", "weight_block_size": "128"}, "weight_block_size '128'"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
    ],
)
def test_what_cannot_be_dequantized_is_refused_when_it_is_fetched(quantization, message, tmp_path):
    model = tiny.llama(tmp_path / "model")
    quantized.say(model, quantization)
    with pytest.raises(ValueError, match=message) as error:
        fetched(model, tmp_path)
    assert str(error.value).startswith(f"model.source = {str(model)!r}: ")
    assert str(error.value).endswith("take the checkpoint that it was made from")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("quantization", ["mxfp4", 4, [{"quant_method": "fp8"}]])
def test_a_quantization_config_that_is_no_mapping_ends_in_one_line(quantization, tmp_path):
    model = tiny.llama(tmp_path / "model")
    quantized.say(model, quantization)
    with pytest.raises(ValueError, match=r"config\.json: quantization_config is .*, and must be"):
        fetched(model, tmp_path)


def test_a_method_that_only_the_text_decoder_names_counts(tmp_path):
    model = tiny.checkpoint(tmp_path / "model", quantized.LLAVA)
    data = json.loads((model / "config.json").read_text("utf-8"))
    data["text_config"]["quantization_config"] = {"quant_method": "gptq"}
    (model / "config.json").write_text(json.dumps(data), "utf-8")
    with pytest.raises(ValueError, match=r"quantized \('gptq'\)"):
        fetched(model, tmp_path)


@pytest.mark.parametrize(
    ("dtype", "said"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8")]
)
def test_packed_weights_of_which_the_configuration_does_not_tell_are_refused(dtype, said, tmp_path):
    model = tiny.llama(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tiny.save_weights(model, weights | {name: weights[name].to(dtype)})
    with pytest.raises(ValueError, match=rf"{name} is stored as {said}, but its config.json"):
        fetched(model, tmp_path)


def test_whole_numbers_that_are_no_weights_are_not_taken_for_packed_ones(tmp_path):
    """An example are the causal masks in old checkpoints of gpt2."""
    model = tiny.llama(tmp_path / "model")
    mask = {"model.layers.1.self_attn.bias": torch.ones(4, 4, dtype=torch.uint8)}
    tiny.save_weights(model, load_file(model / "model.safetensors") | mask)
    assert read_record(fetched(model, tmp_path).model_record)["quantization"] is None


@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.experts.5.up_proj"])
@pytest.mark.parametrize("fault", ["lacking", "of another shape"])
def test_codes_whose_scales_do_not_fit_are_refused(name, fault, tmp_path):
    model = quantized.fp8(tmp_path / "model", quantized.QWEN3_MOE).packed
    weights = load_file(model / "model.safetensors")
    scale = weights.pop(f"model.layers.1.{name}.weight_scale_inv")
    if fault == "of another shape":
        weights[f"model.layers.1.{name}.weight_scale_inv"] = scale.T[:, :1].contiguous()
    tiny.save_weights(model, weights)
    run = fetched(model, tmp_path)
    with pytest.raises(
        ValueError, match=r"layers\.1\..* was loaded as torch\.float8_e4m3fn and not"
    ):
        run.extract()


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8])
def test_codes_that_nothing_scales_are_refused(dtype, method, tmp_path):
    """An example are fused experts whose scales have an unknown name."""
    model = tiny.checkpoint(tmp_path / "model", t.GptOssConfig(**tiny.SIZES, num_local_experts=4))
    weights = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    tiny.save_weights(model, weights | {name: weights[name].to(dtype)})
    quantized.say(model, {"quant_method": method})
    run = fetched(model, tmp_path)
    with pytest.raises(
        ValueError, match=rf"experts\.down_proj was loaded as {dtype} and not as torch"
    ):
        run.extract()


@pytest.mark.parametrize("part", ["blocks", "scales"])
def test_experts_that_lack_a_part_are_missing(part, tmp_path):
    model = quantized.mxfp4(tmp_path / "model").packed
    weights = load_file(model / "model.safetensors")
    del weights[f"model.layers.2.mlp.experts.down_proj_{part}"]
    tiny.save_weights(model, weights)
    run = fetched(model, tmp_path)
    with pytest.raises(ValueError, match=r"lacks weights.*2\.mlp\.experts\.down_proj"):
        run.extract()
