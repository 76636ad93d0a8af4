"""A second super weight that shows only once the first one is zero."""

import planted
import pytest
import tiny
from ablated import counted, loss, whole
from pipeline import Run, config
from planted import MARKED, MARKER, ROWS, Weight
from safetensors.torch import load_file
from test_report import rendered
from torch import no_grad

from outlier_atlas.criteria.super_weights import search as searching

HELDOUT = [[MARKED, *range(40, 70)], [*range(40, 60), MARKED, *range(70, 90)]]
SECOND = Weight(layer=2, output=8, input=21, value=2.0)
"""In the layer of the first, with a smaller output."""
OTHER = 45
"""The token that reaches it."""


def hidden_one(folder):
    """As `planted.super_weight`, with a second one behind the first."""
    folder, weight = planted.super_weight(folder)
    weights = load_file(folder / "model.safetensors")
    mlp = f"model.layers.{weight.layer}.mlp"
    embedding = weights["model.embed_tokens.weight"]
    embedding[:, MARKER + 1] = 0
    embedding[OTHER, MARKER + 1] = 1
    for name in ("gate_proj", "up_proj"):
        source = weights[f"{mlp}.{name}.weight"]
        source[SECOND.input] = 0
        source[SECOND.input, MARKER + 1] = 12
    weights[f"{mlp}.down_proj.weight"][SECOND.output, SECOND.input] = SECOND.value
    tiny.save_weights(folder, weights)
    return folder, weight


def run_of(root, groups=3, **ablation):
    folder, weight = hidden_one(root / "model")
    data = config(
        folder, [*ROWS, *HELDOUT], root / "data", dataset={"sequences": 2},
        extraction={"sites": ["mlp_hidden", "down_proj_out"], "layer_groups": groups},
        ablation={"sequences": 2, "random_draws": 0, "targets": ["super_weights"]} | ablation,
    )  # fmt: skip
    run = Run(root, data)
    run.all()
    return run, weight


@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_found_with_the_first_one_at_zero(groups, tmp_path):
    run, weight = run_of(tmp_path, groups, search_rounds=4)
    (found,) = (row for row in run.table("super_weights") if row["super_weight"])
    assert (found["row"], found["column"]) == (weight.output, weight.input)
    run.ablate()
    _, first, later = run.table("ablations")
    assert (first["target"], first["round"], first["share"]) == ("super_weight", None, None)
    assert (later["target"], later["round"]) == ("later_super_weight", 1)
    assert (later["first_layer"], later["last_layer"]) == (SECOND.layer, SECOND.layer)
    assert (later["row"], later["column"]) == (SECOND.output, SECOND.input)
    assert later["output"] == SECOND.value * later["input"] > 50
    assert later["share"] == 1
    loaded = whole(tmp_path / "model")
    with no_grad():
        for each in (weight, SECOND):
            down = loaded.model.layers[each.layer].mlp.down_proj.weight
            assert down[each.output, each.input] == each.value
            down[each.output, each.input] = 0
    assert later["loss"] == loss(loaded, HELDOUT)
    html, _ = rendered(run, ablations=True)
    assert f"row {SECOND.output}, column {SECOND.input} of the down projection" in html


def test_no_rounds_search_nothing(tmp_path):
    run, _ = run_of(tmp_path, search_rounds=0)
    run.ablate()
    assert {row["target"] for row in run.table("ablations")} == {"none", "super_weight"}


def test_a_search_that_was_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    run, _ = run_of(tmp_path)
    take, left = searching._group, [2]

    def stop(*args):
        if not left[0]:
            raise OSError("killed")
        left[0] -= 1
        return take(*args)

    with monkeypatch.context() as patch:
        patch.setattr(searching, "_group", stop)
        with pytest.raises(OSError, match="killed"):
            run.ablate()
    groups = []
    monkeypatch.setattr(
        searching, "_group", lambda a, i, *rest: groups.append(i) or take(a, i, *rest)
    )
    run.ablate()
    assert groups == [2, 0, 1, 2], "the rest of the first round, and a second one"
    before = run.table("ablations")
    assert [row["target"] for row in before] == ["none", "super_weight", "later_super_weight"]
    passes = counted(monkeypatch)
    run.ablate()
    assert run.table("ablations") == before
    assert not passes
