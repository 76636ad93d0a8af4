"""Weights of a checkpoint that its model would ignore silently."""

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_architectures import GPT2, SIZES
from transformers import AutoConfig, GPT2Config, LlamaConfig

from outlier_atlas.checkpoint import source
from outlier_atlas.checkpoint.folder import weight_files
from outlier_atlas.loading.headers import check_headers
from outlier_atlas.roles.architecture import describe


def checked(folder):
    config = source.load_config(folder)
    architecture = describe(config)
    layers = range(architecture.layers)
    check_headers(folder, weight_files(folder), config, architecture, layers, False)


def with_more(folder, **tensors):
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path, metadata={"format": "pt"})


LAYER = "model.layers.1"


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.self_attn.q_norm.weight",
        f"{LAYER}.self_attn.q_proj.bias",
        f"{LAYER}.mlp.down_proj.weight_scale",
        f"{LAYER}.self_attn.q_proj.lora_A.default.weight",
        f"{LAYER}.new_norm.weight",
        "model.embed_norm.weight",
    ],
)
def test_a_weight_that_the_model_has_no_place_for_is_refused_by_its_name(name, tmp_path):
    folder = tiny.checkpoint(tmp_path / "model", LlamaConfig(**SIZES))
    checked(folder)
    with_more(folder, **{name: torch.ones(32)})
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        checked(folder)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_every_renamed_weight_is_refused(name, tmp_path):
    made = getattr(tiny, name)(tmp_path / "made", num_hidden_layers=2)
    folder = tiny.checkpoint(tmp_path / "model", AutoConfig.from_pretrained(made))
    path = folder / "model.safetensors"
    whole = load_file(path)
    for key in whole:
        if key == "lm_head.weight" or ".layers.0." in key:
            continue  # only perplexity needs the one; the layers are alike
        stem, _, ending = key.rpartition(".")
        renamed = {k: v for k, v in whole.items() if k != key} | {f"{stem}_x.{ending}": whole[key]}
        save_file(renamed, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks weights|does not use|do not fit"):
            checked(folder)


def test_what_real_checkpoints_have_and_no_model_uses_is_left_out(tmp_path):
    llama = tiny.checkpoint(tmp_path / "llama", LlamaConfig(**SIZES))
    with_more(
        llama,
        **{
            f"{LAYER}.self_attn.rotary_emb.inv_freq": torch.ones(4),
            "mtp.fc.weight": torch.ones(4, 4),
            f"model.layers.{SIZES['num_hidden_layers']}.eh_proj.weight": torch.ones(4, 4),
            "score.weight": torch.ones(1, 32),
        },
    )
    checked(llama)
    gpt2 = tiny.checkpoint(tmp_path / "gpt2", GPT2Config(**GPT2))
    with_more(
        gpt2,
        **{
            "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8),
            "transformer.h.0.attn.masked_bias": torch.ones(()),
        },
    )
    checked(gpt2)
