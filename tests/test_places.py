"""Sites have the values that their names state, without the code's own assignment of modules."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from test_architectures import EXACT, LISTED, name, offered
from torch import nn
from torch.nn import functional
from transformers.models.llama import modeling_llama

from outlier_atlas.roles.architecture import describe

ROWS = torch.tensor([[5, 17, 200, 9, 33, 41], [40, 6, 6, 90, 280, 14]])
UNLISTED = ("gptj", "cohere", "stablelm", "persimmon", "bamba", "flint")
MULTIPLIED = {"attn_in", "attn_hidden", "mlp_in", "mlp_hidden", "router_logits"}
ATTENTION = {"self_attn", "linear_attn", "attn", "attention"}


def first_tensor(args, kwargs):
    return next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))


def forward(config):
    """Return by layer the tensors of taps and the inputs of modules, in order."""
    described, model = describe(config), tiny.perturbed(config)
    stack = model.get_submodule(f"{described.decoder}.{described.stack}")
    layers = [SimpleNamespace(block=block, taken={}, given={}) for block in stack]

    def see(layer, path):
        def hook(module, args, kwargs):
            layer.given[path] = first_tensor(args, kwargs).clone()

        return hook

    def given(layer, tap):
        def hook(module, args, kwargs):
            layer.taken[tap.site] = tap.take(first_tensor(args, kwargs), *ROWS.shape).clone()

        return hook

    def made(layer, tap):
        def hook(module, args, output):
            whole = output if isinstance(output, torch.Tensor) else output[0]
            layer.taken[tap.site] = tap.take(whole, *ROWS.shape).clone()

        return hook

    for layer, taps in zip(layers, described.taps, strict=True):
        for path, module in layer.block.named_modules():
            module.register_forward_pre_hook(see(layer, path), with_kwargs=True)
        for tap in taps.values():
            module = model.get_submodule(f"{described.decoder}.{tap.module}")
            if tap.side == "input":
                module.register_forward_pre_hook(given(layer, tap), with_kwargs=True)
            elif tap.side == "output":
                module.register_forward_hook(made(layer, tap))
    with torch.inference_mode():
        streams = model(ROWS, use_cache=False, output_hidden_states=True).hidden_states
    return layers, streams


@pytest.mark.parametrize(("config", "sites"), LISTED, ids=name)
def test_sites_of_listed_architectures_are_what_their_names_say(config, sites):
    layers, streams = forward(config)
    check_residual_stream(layers, streams)
    check_products(layers, sites)
    if "attn_out" in sites:
        check_sums(layers)


@pytest.mark.parametrize(
    "config", [config for config in EXACT if config.model_type in UNLISTED], ids=name
)
def test_what_blocks_add_adds_up_in_others_too(config):
    layers, streams = forward(config)
    check_residual_stream(layers, streams)
    check_sums([layer for layer in layers if "attn_out" in layer.taken])


def check_residual_stream(layers, streams):
    """Compare with the hidden states that the model returns, the last of which is normed."""
    for layer, before, after in zip(layers, streams[:-1], (*streams[1:-1], None), strict=True):
        assert torch.equal(layer.taken["resid_pre"], before)
        assert after is None or torch.equal(layer.taken["resid_post"], after)


def check_sums(layers):
    """Check the sums of the residual stream, in an order of additions that a model may use."""
    assert layers
    for layer in layers:
        pre, attention, mlp, post = (
            layer.taken[site] for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        if (middle := layer.taken.get("resid_mid")) is not None:
            assert torch.equal(pre + attention, middle)
            assert torch.equal(middle + mlp, post)
        else:
            orders = (attention + mlp + pre, pre + attention + mlp, pre + mlp + attention)
            assert any(torch.equal(order, post) for order in orders)


def check_products(layers, sites):
    """Check that inputs of weights are the inputs of the linear layers of a part."""
    looked_at = set()
    for layer in layers:
        want = expected(layer)
        for site in {*want} & {*layer.taken}:
            tensor = layer.taken[site]
            assert torch.equal(tensor, want[site].reshape(tensor.shape)), site
            looked_at.add(site)
    assert looked_at >= sites & MULTIPLIED


def expected(layer):
    """Return by site the inputs of the first and the last linear layer of each part of a block."""
    linears = [
        path
        for path in layer.given
        if isinstance(layer.block.get_submodule(path), nn.Linear)
        or type(layer.block.get_submodule(path)).__name__ == "Conv1D"
    ]
    attention = [path for path in linears if path.split(".")[0] in ATTENTION]
    want = {"attn_in": attention[0], "attn_hidden": attention[-1]}
    experts = [path for path in layer.given if path.endswith("experts")]
    others = [path for path in linears if path not in attention]
    want |= {"mlp_in": experts[0]} if experts else {"mlp_in": others[0], "mlp_hidden": others[-1]}
    tensors = {site: layer.given[path] for site, path in want.items()}
    return tensors | ({"router_logits": scores(layer, experts[0])} if experts else {})


def scores(layer, experts):
    """Return the input of the experts times the weights that have a row for each expert."""
    hidden, experts = layer.given[experts], layer.block.get_submodule(experts)
    shape = (len(experts.down_proj), hidden.shape[-1])
    (router,) = (
        module
        for path, module in layer.block.named_modules()
        if path.split(".")[0] not in ATTENTION
        and getattr(getattr(module, "weight", None), "shape", None) == shape
    )
    return functional.linear(hidden, router.weight, getattr(router, "bias", None))


@pytest.mark.parametrize("called", ["twice", "with some tokens"])
def test_a_site_that_is_not_there_once_for_each_token_is_not_offered(called, monkeypatch):
    block = modeling_llama.LlamaDecoderLayer
    forward = block.forward

    def changed(self, hidden_states, **kwargs):
        if called == "twice":
            self.mlp(hidden_states)
            return forward(self, hidden_states, **kwargs)
        hidden_states = (
            hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        )
        return torch.cat([hidden_states[:, :4], self.mlp(hidden_states[:, 4:])], dim=1)

    monkeypatch.setattr(block, "forward", changed)
    described = describe(LISTED[0][0])
    assert not {"mlp_in", "mlp_hidden", "mlp_out"} & offered(described)
    with pytest.raises(ValueError, match=r"has no mlp_in in layer 0 .*; it has resid_pre, attn_in"):
        described.check(["mlp_in"], range(4))
