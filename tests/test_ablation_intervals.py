"""Intervals of ablation against draws of held-out sequences that are made one by one."""

import numpy as np
import pytest
from ablated import NOTHING, counted, losses_of, set_channel, whole
from pipeline import Run, config
from test_intervals import LEVEL, SEED, interval
from test_report import Page, _section, rendered

from outlier_atlas import tables
from outlier_atlas.ablation.table import columns
from outlier_atlas.ablation.variants import UNALTERED, Trial, Variant, ZeroWeight
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.text import interval as ends_of
from outlier_atlas.text import number, times

BOOTSTRAP = {"resamples": 200, "seed": SEED, "level": LEVEL}
OWN = [[5, 17, 200, 9, 33, 41], [40, 6, 6, 90, 280]]
HELD = [
    [12, 99, 31, 7, 7, 201, 18, 44, 250, 3],
    [8, 15, 16, 23, 42, 108, 4, 100],
    [77, 3, 150],
    [280, 14, 8, 77, 120, 64],
    [9, 9, 61, 230, 5, 17, 19],
]


def ablated(model, folder, own=OWN, held=HELD, level=LEVEL, **ablation):
    data = config(
        model, [*own, *held], folder / "data", dataset={"sequences": len(own)},
        detection={"bootstrap": BOOTSTRAP | {"level": level}},
        extraction={"sites": ["resid_post"]},
        ablation={"sequences": len(held), **NOTHING, "interventions": ["zero"]} | ablation,
    )  # fmt: skip
    run = Run(folder, data)
    run.all()
    run.ablate()
    return run


def test_intervals_are_of_draws_of_the_same_sequences_of_both_models(llama, tmp_path):
    run = ablated(llama, tmp_path, channels=[["resid_post", 1, 3], ["mlp_out", 2, 7]])
    first, second = whole(llama), whole(llama)
    set_channel(first, "resid_post", 1, 3, 0)
    set_channel(second, "mlp_out", 2, 7, 0)
    unaltered, *altered = (
        [each.double().numpy() for each in losses_of(loaded, HELD)]
        for loaded in (whole(llama), first, second)
    )

    def mean(losses):
        return lambda draw: np.concatenate([losses[s] for s in draw]).mean()

    for row, losses in zip(run.table("ablations"), [unaltered, *altered], strict=True):
        more = [a - b for a, b in zip(losses, unaltered, strict=True)]
        for name, of_draw in (
            ("loss", mean(losses)),
            ("perplexity", lambda draw, of=losses: np.exp(mean(of)(draw))),
            ("ratio", lambda draw, of=more: np.exp(mean(of)(draw))),
        ):
            got = row[f"{name}_low"], row[f"{name}_high"]
            # Sums of float64 in another order.
            assert got == pytest.approx(interval(of_draw, len(HELD)), rel=1e-12), name
            assert got[0] <= row[name] <= got[1]
            assert got[0] < got[1] or (row["target"], name) == ("none", "ratio")
    assert tables.parameters(run.tables, tables.ABLATIONS) == {"bootstrap": BOOTSTRAP}


def test_another_level_computes_nothing_again(llama, tmp_path, monkeypatch):
    run = ablated(llama, tmp_path, channels=[["resid_post", 1, 3]])
    before = run.table("ablations")
    passes = counted(monkeypatch)
    run = ablated(llama, tmp_path, level=0.5, channels=[["resid_post", 1, 3]])
    assert passes == {}
    for row, old in zip(run.table("ablations"), before, strict=True):
        assert row["loss"] == old["loss"]
        assert old["loss_low"] < row["loss_low"] < row["loss_high"] < old["loss_high"]


def test_an_infinite_loss_is_in_the_draws_that_hold_its_sequence_alone():
    starts = np.array([0, 3, 5, 9])
    variant = Variant((ZeroWeight(0, 1, 2),))
    losses = {UNALTERED.key: np.ones(9, np.float32), variant.key: np.full(9, 2, np.float32)}
    trials = [Trial("none", "none", UNALTERED), Trial("weight", "zero", variant)]

    def ends(name):
        found = columns(trials, losses, starts, Bootstrap(3, 200, SEED, LEVEL))
        return [*zip(found[f"{name}_low"], found[f"{name}_high"], strict=True)]

    e = pytest.approx(np.e)
    assert ends("ratio") == [(1.0, 1.0), (e, e)]
    losses[variant.key][4] = np.inf
    assert ends("loss") == [(1.0, 1.0), (2.0, np.inf)]
    assert ends("ratio") == [(1.0, 1.0), (e, np.inf)]
    losses[variant.key][4] = np.nan
    assert ends("loss") == [(1.0, 1.0), (None, None)]
    assert ends("ratio")[1] == (None, None)


def test_the_report_has_the_intervals_under_the_numbers(llama, tmp_path):
    """Of random draws from the lowest end to the highest."""
    run = ablated(llama, tmp_path, channels=[["resid_post", 1, 3]], random_draws=3)
    unaltered, altered, *random = run.table("ablations")
    page, _ = rendered(run, ablations=True)
    shown = _section(page, "ablation")
    for name, said in (("perplexity", number), ("ratio", times)):
        assert f"<td>{said(altered[name])}<small>{ends_of(altered, name, said)}</small>" in shown
        low = min(row[f"{name}_low"] for row in random)
        high = max(row[f"{name}_high"] for row in random)
        assert f"<small>{said(low)} to {said(high)}</small>" in shown
    own = ends_of(unaltered, "perplexity", number)
    assert f"perplexity of {number(unaltered['perplexity'])} ({own}) over" in shown
    assert "paired" in shown


@pytest.mark.parametrize(("own", "held", "said"), [
    (OWN[:1], HELD, "no number has an interval over sequences, but for those of ablation"),
    (OWN[:1], HELD[:1], "no number has an interval over sequences."),
    (OWN, HELD[:1], "In brackets, and in small type under numbers: 90 %"),
])  # fmt: skip
def test_one_sequence_has_no_interval_and_several_of_the_other_kind_have(
    llama, own, held, said, tmp_path
):
    run = ablated(llama, tmp_path, own, held, channels=[["resid_post", 1, 3]])
    page, _ = rendered(run, ablations=True)
    assert said in Page(page).said
    shown = _section(page, "ablation")
    for sign in ("<small>", "paired", "outermost ends"):
        assert (sign in shown) == (len(held) > 1), sign
    ends = {row["ratio_low"] is None for row in run.table("ablations")}
    assert ends == {len(held) < 2}
