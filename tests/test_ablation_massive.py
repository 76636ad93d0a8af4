"""Massive activations set to zero and to their mean, at their tokens alone; random controls."""

from itertools import combinations
from pathlib import Path

import numpy as np
import planted
import pytest
import tiny
import torch
from ablated import losses_of, whole
from pipeline import Run, config
from planted import MARKED, ROWS
from safetensors.torch import load_file
from test_report import rendered

from outlier_atlas.ablation.apply import massive_tokens
from outlier_atlas.ablation.draws import Draws
from outlier_atlas.ablation.variants import SetMassive

OWN, HELDOUT = ROWS, [[MARKED, *range(30, 60), MARKED, *range(70, 90)], [*range(40, 70), MARKED, 5]]
CRITERION = {"absolute": 100.0, "ratio": 1000.0}


@pytest.fixture(scope="module", params=["tensor", "token"])
def run(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("massive")
    folder, weight = planted.super_weight(root / "model")
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for layer in (5, 6):  # some that read the residual stream, so that losses depend on it
        for name in ("gate_proj", "up_proj", "down_proj"):
            noise = weights[f"model.layers.{layer}.mlp.{name}.weight"]
            noise += torch.randn(noise.shape, dtype=torch.float32).to(noise) * 0.05
    embedding = weights["model.embed_tokens.weight"]
    embedding[:, 11:20] += torch.randn(len(embedding), 9).to(embedding) * 0.05
    tiny.save_weights(folder, weights)
    data = config(
        folder, [*OWN, *HELDOUT], root / "data", dataset={"sequences": 2},
        extraction={"sites": ["resid_post"], "layer_groups": 3},
        detection={"massive_activations": CRITERION | {"median": request.param}},
        ablation={"sequences": 2, "random_draws": 2, "targets": [
            "massive_activations", "massive_channels",
        ]},
    )  # fmt: skip
    run = Run(root, data)
    run.all()
    run.ablate()
    return run, weight


def by_hand(run, weight, change):
    """Mean loss of the held-out sequences with a hook on the whole model."""
    loaded = whole(Path(run.settings.model.source))

    def after(_, __, output):
        x = (output[0] if isinstance(output, tuple) else output).clone()
        a = x[0].float().abs().numpy()
        middle = np.quantile(a, 0.5, method="lower")
        if run.settings.detection.massive_activations.median == "token":
            middle = np.quantile(a, 0.5, method="lower", axis=1)
        own = a[:, weight.output]
        massive = np.flatnonzero((own > 100) & (own >= 1000 * middle))
        assert 0 < len(massive) < 3
        for token in massive:
            change(x, token)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    loaded.model.layers[weight.layer].register_forward_hook(after)
    return torch.cat(losses_of(loaded, HELDOUT)).double().mean().item()


def test_only_the_massive_values_are_set_at_their_tokens(run):
    run, weight = run
    rows = run.table("ablations")
    found = [r for r in run.table("massive_activations") if r["layer"] == weight.layer]
    assert {r["channel"] for r in found} == {weight.output}
    mean = {
        first: np.mean([r["value"] for r in found if (r["position"] == 0) is first])
        for first in (True, False)
    }

    def to_mean(x, token):
        x[0, token, weight.output] = mean[token == 0]

    def to_zero(x, token):
        x[0, token, weight.output] = 0

    mine = [row for row in rows if row["target"] == "massive_activations"]
    assert [row["intervention"] for row in mine] == ["zero", "mean", "random", "random"]
    assert mine[0]["loss"] == by_hand(run, weight, to_zero)
    assert mine[1]["loss"] == by_hand(run, weight, to_mean)
    for row in mine[2:]:
        channel = int(row["channels"])
        assert channel != weight.output

        def to_random(x, token, channel=channel):
            x[0, token, channel] = 0

        assert row["loss"] == by_hand(run, weight, to_random)
    assert {(row["first_layer"], row["last_layer"]) for row in mine} == {(weight.layer,) * 2}
    assert {row["channels"] for row in mine[:2]} == {str(weight.output)}


def test_the_whole_channel_is_another_intervention(run):
    run, _ = run
    rows = {
        (row["target"], row["intervention"]): row["loss"]
        for row in run.table("ablations")
        if row["draw"] is None
    }
    assert rows["massive_activations", "zero"] != rows["none", "none"]
    assert rows["massive_channel", "zero"] != rows["massive_activations", "zero"]
    assert rows["massive_channel", "mean"] != rows["massive_activations", "mean"]
    html, _ = rendered(run, ablations=True)
    assert "channel of massive activations" in html


def edit(median="tensor", **other):
    values = {"layer": 0, "site": "resid_post", "channel": 1, "set_channel": 1, "first": 0.0,
              "others": 0.0, "absolute": 100.0, "ratio": 10.0}  # fmt: skip
    return SetMassive(**(values | other), median=median)


def test_the_criterion_is_that_of_detection():
    """> of the absolute threshold, >= of the ratio; the lower of two middle values; no NaN."""
    x = torch.full((4, 4), 10.0)
    x[0, 1], x[1, 1], x[2, 1], x[3, 1] = 100, -100.5, torch.inf, torch.nan
    assert massive_tokens(x, edit()).tolist() == [1]
    assert massive_tokens(x, edit(ratio=10.05)).tolist() == [1]
    assert massive_tokens(x, edit(ratio=10.06)).tolist() == []
    x[1, 0] = x[1, 2] = 20
    assert massive_tokens(x, edit()).tolist() == [1], "the median of all is 10 still"
    assert massive_tokens(x, edit("token")).tolist() == [], "its own is 20"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("median", ["tensor", "token"])
def test_the_tokens_are_those_of_a_median_over_everything(median, dtype):
    torch.manual_seed(0)
    x = (torch.randn(300, 9) * torch.randn(300, 1).exp() * 100).to(dtype)
    x[3, 2], x[70, 1], x[71] = torch.nan, torch.inf, torch.nan
    finite = torch.where(x.isfinite(), x.float().abs(), torch.nan)
    middle = finite.nanmedian() if median == "tensor" else finite.nanmedian(1).values
    wanted = (finite[:, 1] > 100) & (finite[:, 1].double() >= 2.0 * middle.double())
    got = massive_tokens(x, edit(median, ratio=2.0))
    assert got.tolist() == torch.nonzero(wanted)[:, 0].tolist()
    assert 20 < len(got) < 200


def test_no_random_control_is_drawn_twice(caplog):
    draws = Draws(8, 0)
    sets = draws.sets([3, 5, 8, 9, 11], 2, "channels")
    assert len({*sets}) == 8
    assert {*sets} <= {*combinations([3, 5, 8, 9, 11], 2)}
    assert Draws(5, 0).sets([3, 5, 8, 9, 11], 2, "channels") == sets[:5]
    assert not caplog.records
    places = draws.places((2, 5), {(0, 0), (1, 4)}, "weights")
    assert {*places} == {(r, c) for r in range(2) for c in range(5)} - {(0, 0), (1, 4)}
    assert not caplog.records
    few = Draws(30, 0).sets([3, 5, 8], 2, "channels 1 and 2")
    assert {*few} == {(3, 5), (3, 8), (5, 8)}
    (said,) = caplog.messages
    assert said == (
        "ablation.random_draws = 30: there are 3 different random controls of channels 1 and 2, "
        "and all of them are taken"
    )
    assert Draws(3, 0).sets([1], 2, "two channels") == [], "as many or none"
