"""Outputs of experts, computed independently from the weights and the router's choice."""

import numpy as np
import torch
import transformers as t
from pipeline import Run, config
from test_architectures import HEADS, LATENT, LOCAL, MOE, ROUTED, SIZES
from transformers.integrations import moe

from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.roles.architecture import describe

ARCHITECTURES = [
    t.Qwen3MoeConfig(**SIZES, **MOE, head_dim=8),
    t.MixtralConfig(**SIZES, **LOCAL),
    t.GptOssConfig(**SIZES, **LOCAL, head_dim=8, sliding_window=4),
    t.OlmoeConfig(**SIZES, num_experts=8, num_experts_per_tok=2),
    t.Glm4MoeConfig(**SIZES, **ROUTED, head_dim=8, n_group=1),
    t.DeepseekV3Config(**HEADS, **ROUTED, **LATENT, n_group=2),
]
# Nobody wrote a word of the code for these.
UNLISTED = [t.GraniteMoeConfig(**SIZES, **LOCAL), t.PhimoeConfig(**SIZES, **LOCAL)]
ROWS = [[5, 17, 200, 9, 33, 41, 7], [40, 6, 6, 90, 280, 14, 8], [1, 2, 3], [9, 250, 11]]
PARTS = (
    "expert_out", "expert_out_expert", "expert_out_channel", "expert_out_input",
    "expert_out_input_channel",
)  # fmt: skip


def name(value):
    return getattr(value, "model_type", str(value))


def bias(experts, name):
    return getattr(experts, f"{name}_bias", None)


def grouped_products(experts, hidden, index):
    """Return the inputs and outputs of one down_proj product, and the token and slot of rows."""
    chosen, order = torch.sort(index.reshape(-1))
    ends = torch.bincount(chosen, minlength=len(experts.down_proj)).cumsum(0).int()
    x = hidden[order // index.shape[1]]
    for projection in ("gate_up_proj", "down_proj"):
        given, biases = x, bias(experts, projection)
        x = moe._grouped_linear(
            x, getattr(experts, projection), ends,
            None if biases is None else biases[chosen], experts.is_transposed,
        )  # fmt: skip
        if projection == "gate_up_proj":
            x = experts._apply_gate(x)
    for row, place in enumerate(order.tolist()):
        yield *divmod(place, index.shape[1]), given[row], x[row]


def eager_products(experts, hidden, index):
    """Return the same as `grouped_products`, expert by expert."""
    for expert in range(len(experts.down_proj)):
        slots, tokens = torch.where((index == expert).T)
        if not len(tokens):
            continue
        x = hidden[tokens]
        for projection in ("gate_up_proj", "down_proj"):
            weight, biases = getattr(experts, projection)[expert], bias(experts, projection)
            given = x
            x = x @ weight if experts.is_transposed else torch.nn.functional.linear(x, weight)
            x = x if biases is None else x + biases[expert]
            if projection == "gate_up_proj":
                x = experts._apply_gate(x)
        yield from zip(tokens.tolist(), slots.tolist(), given, x, strict=True)


def extremes(products, index):
    """Return values, experts, channels, inputs and their channels: (5, token, routed)."""
    made = np.full((5, *index.shape), np.nan)
    for token, slot, given, out in products:
        values, inputs = out.float().numpy(), given.float().numpy()
        channel, column = int(np.abs(values).argmax()), int(np.abs(inputs).argmax())
        expert = int(index[token, slot])
        made[:, token, slot] = values[channel], expert, channel, inputs[column], column
    return made


def experts_of(model):
    """Return the modules of fused experts, in the order of their layers."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "down_proj", None), torch.nn.Parameter)
    ]


def load(folder, dtype=torch.bfloat16):
    return t.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def forward(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor(ids), use_cache=False).logits


def reference(folder, batches=((0, 1), (2, 3)), products=grouped_products, dtype=torch.bfloat16):
    """Return the values of the whole model: (5, layer, token, routed), for layers with experts."""
    model = load(folder, dtype)
    found = [[] for _ in experts_of(model)]

    def look(layer):
        def hook(module, args, kwargs):
            hidden, index = args[0], args[1]
            with torch.inference_mode():
                found[layer].append(extremes(products(module, hidden, index), index))

        return hook

    for layer, module in enumerate(experts_of(model)):
        module.register_forward_pre_hook(look(layer), with_kwargs=True)
    for batch in batches:
        forward(model, [ROWS[sequence] for sequence in batch])
    return np.stack([np.concatenate(parts, axis=1) for parts in found], axis=1)


def routed_layers(folder):
    taps = describe(load_config(folder)).taps
    return [layer for layer, sites in enumerate(taps) if "expert_out" in sites]


def extracted(folder, tmp_path, name="run", dtype="bfloat16", **extraction):
    settings = {"sites": ["expert_out"], "layers": routed_layers(folder)} | extraction
    data = config(
        folder, ROWS, tmp_path / "data", run={"name": name},
        extraction=settings, execution={"batch_size": 2},
    )  # fmt: skip
    data["model"]["dtype"] = dtype
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    return run


def stored(run):
    return np.stack([run.array(part) for part in PARTS])
