"""Runs with an ablation stage, and the same done to the whole model with hooks."""

import tiny
import torch
from pipeline import Run, config

from outlier_atlas.ablation.job import Ablation
from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.extraction.capture import LayerGroup

ROWS = [
    [5, 17, 200, 9, 33, 41, 7, 250, 11, 19],
    [40, 6, 6, 90, 280, 14, 8, 77, 120, 64],
    [12, 99, 31, 7, 7, 201, 18, 44, 250, 3],
    [8, 15, 16, 23, 42, 108, 4, 100],
]
HELDOUT = ROWS[2:]
NOTHING = {"targets": [], "random_draws": 0}

# Where a llama has its sites: the module, and whether it is what goes in or what comes out.
PLACES = {
    "resid_pre": ("", "in"), "attn_in": ("self_attn", "in"), "q": ("self_attn.q_proj", "out"),
    "k": ("self_attn.k_proj", "out"), "v": ("self_attn.v_proj", "out"),
    "attn_hidden": ("self_attn.o_proj", "in"), "attn_out": ("self_attn", "out"),
    "mlp_in": ("mlp", "in"), "mlp_hidden": ("mlp.down_proj", "in"), "mlp_out": ("mlp", "out"),
    "down_proj_out": ("mlp.down_proj", "out"),
    "resid_post": ("", "out"),
}  # fmt: skip


def whole(model):
    return tiny.auto_class(load_config(model)).from_pretrained(model, dtype=torch.bfloat16).eval()


def loss(loaded, rows=HELDOUT):
    """Mean over the tokens of whole sequences, from all logits at once."""
    return torch.cat(losses_of(loaded, rows)).double().mean().item()


def losses_of(loaded, rows):
    """Of each sequence the losses of its predicted tokens."""
    losses = []
    with torch.inference_mode():
        for row in rows:
            logits = loaded(torch.tensor([row]), use_cache=False).logits[0].float()
            own = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(row[1:])[:, None])
            losses.append(-own[:, 0])
    return losses


def set_channel(loaded, site, layer, channel, value):
    """The same with a hook on a whole llama, in place and without anything of the project."""
    path, side = PLACES[site]
    module = loaded.get_submodule(f"model.layers.{layer}.{path}".rstrip("."))

    def change(tensor):
        changed = tensor.clone()
        changed[:, :, channel] = value
        return changed

    def before(_, args, kwargs):
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    def after(_, args, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    if side == "in":
        module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        module.register_forward_hook(after)


def stage(run):
    """The ablation stage of a run, as `Run.ablate` makes it."""
    return Ablation(
        run.settings.ablation.model_dump(mode="json"),
        run.settings.detection.bootstrap.model_dump(mode="json"),
        run.stored,
        device="cpu",
    )


def made(model, tmp_path, groups=1, name="run", extraction=None, detection=None, **ablation):
    data = config(
        model, ROWS, tmp_path / "data", run={"name": name}, dataset={"sequences": 2},
        extraction={"sites": ["resid_post"], "layer_groups": groups} | (extraction or {}),
        detection=detection or {}, ablation={"sequences": 2} | ablation,
    )  # fmt: skip
    run = Run(tmp_path, data)
    run.all()
    return run


def counted(monkeypatch):
    """(layers, how many forward passes) as they are made."""
    passes = {}
    directly = LayerGroup.run_directly

    def run(self, batch, keep, altered):
        assert len(batch) == 1, "one sequence at a time"
        first = int(self._first_path.rsplit(".", 1)[1])
        passes[first] = passes.get(first, 0) + 1
        return directly(self, batch, keep, altered)

    monkeypatch.setattr(LayerGroup, "run_directly", run)
    return passes
