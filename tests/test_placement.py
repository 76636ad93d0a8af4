"""Layer group on several devices."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial, partialmethod

import pytest
import tiny
import torch
import transformers as t
from pipeline import Run
from test_architectures import GPT2, ROWS, assert_equal_in_layer_groups

from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.devices.registry import of
from outlier_atlas.extraction import compute
from outlier_atlas.extraction.capture import LayerGroup
from outlier_atlas.loading.footprint import sizes
from outlier_atlas.loading.partial import load_layers, weight_bytes
from outlier_atlas.loading.placement import move_to_devices, spread
from outlier_atlas.roles.architecture import describe
from outlier_atlas.roles.pytree import tensors_in


@pytest.mark.parametrize(
    ("weights", "parts", "want"),
    [
        ([1, 1, 1, 1], 1, [range(4)]),
        ([1, 1, 1, 1], 2, [range(2), range(2, 4)]),
        ([5, 1, 1, 1], 2, [range(1), range(1, 4)]),
        ([1, 1, 1, 5], 2, [range(3), range(3, 4)]),
        ([9, 1, 1], 3, [range(1), range(1, 2), range(2, 3)]),
        ([3, 2, 2, 3, 2], 3, [range(1), range(1, 3), range(3, 5)]),
    ],
)
def test_the_heaviest_part_is_as_light_as_can_be(weights, parts, want):
    assert spread(weights, parts) == want


MODELS = [
    t.LlamaConfig(**tiny.SIZES),
    t.GPT2Config(**GPT2),
    t.Gemma3TextConfig(**tiny.SIZES, head_dim=8, sliding_window=4),
    t.BloomConfig(vocab_size=320, hidden_size=32, n_layer=4, n_head=4),
]


def loaded(model, layers):
    config = load_config(model)
    described = describe(config)
    return described, load_layers(model, config, described, layers, "bfloat16")


def on(tensors):
    return {tensor.device.type for tensor in tensors}


@pytest.mark.parametrize("architecture", MODELS, ids=lambda config: config.model_type)
@pytest.mark.parametrize("layers", [range(4), range(1, 4)], ids=str)
def test_what_a_layer_computes_with_is_on_its_device(architecture, layers, tmp_path):
    """The meta device takes the part of a second device."""
    described, model = loaded(tiny.checkpoint(tmp_path / "model", architecture), layers)
    move_to_devices(model, described.stack, layers, ["cpu", "meta"])
    blocks = {layer: model.get_submodule(f"{described.stack}.{layer}") for layer in layers}
    want = {layer: on(block.parameters()) for layer, block in blocks.items()}
    assert [want[layers[0]], want[layers[-1]]] == [{"cpu"}, {"meta"}]
    given, made = {}, {}

    def look(layer, _, args, kwargs):
        given[layer] = on(tensors_in([args, kwargs]))

    for layer, block in blocks.items():
        block.register_forward_pre_hook(partial(look, layer), with_kwargs=True)
    group = LayerGroup(model, described, layers, [described.taps[i]["resid_post"] for i in layers])
    batch = torch.tensor(ROWS) if 0 in layers else torch.ones(2, 10, 32)
    group.run(batch, lambda tap, tensor: made.update({tap.layer: on([tensor])}))
    assert given == made == want


def test_a_run_over_two_devices_stores_the_same(llama, tmp_path, monkeypatch):
    asked = []

    @contextmanager
    def two(wanted, count, job):
        asked.append(count)
        yield ["cpu"] * count

    monkeypatch.setattr(compute, "devices", two)
    monkeypatch.setattr(Run, "job", partialmethod(job_over_two, Run.job))
    assert_equal_in_layer_groups(llama, ["attn_in", "q", "resid_post"], tmp_path)
    assert set(asked) == {1, 2}, "a layer group of one layer takes one device"


def job_over_two(run, job, group, shard):
    return replace(job(run, group, shard), gpus=2)


@pytest.mark.parametrize("layers", [range(4), range(1, 4)], ids=str)
def test_the_plan_is_of_the_fullest_device(layers, tmp_path):
    """The embedding is heavier than the layers, so the first device takes only one layer."""
    folder = tiny.llama(tmp_path / "model", vocab_size=3000)
    described, model = loaded(folder, layers)
    planned = sizes(load_config(folder), described, "bfloat16", 8)
    assert planned.fullest(layers, 1) == weight_bytes(model)
    move_to_devices(model, described.stack, layers, ["cpu", "meta"])
    tensors = [*model.parameters(), *model.buffers()]
    held = [sum(t.nbytes for t in tensors if t.device.type == name) for name in ("cpu", "meta")]
    assert planned.fullest(layers, 2) == max(held)
    assert on(model.get_submodule(f"{described.stack}.{layers[1]}").parameters()) == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2])
def test_layers_on_cuda_devices_give_the_same_in_any_number_of_groups(count, tmp_path):
    if torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} CUDA devices")
    where = [f"cuda:{index}" for index in range(count)]
    model = tiny.llama(tmp_path / "model")
    whole = taken(model, range(4), ["cuda:0"], torch.tensor(ROWS))
    first = taken(model, range(2), where, torch.tensor(ROWS))
    second = taken(model, range(2, 4), where, first["resid_post", 1])
    for key, tensor in (first | second).items():
        assert torch.equal(tensor, whole[key])


def taken(folder, layers, devices, batch):
    """Return all sites of some layers, on the host."""
    described, model = loaded(folder, layers)
    move_to_devices(model, described.stack, layers, devices)
    taps = [tap for layer in layers for tap in described.taps[layer].values()]
    group, copies = LayerGroup(model, described, layers, taps), {}
    group.run(batch, lambda tap, x: copies.update({(tap.site, tap.layer): of(x).to_host(x)}))
    for copy in copies.values():
        copy.wait()
    return {key: copy.values for key, copy in copies.items()}
