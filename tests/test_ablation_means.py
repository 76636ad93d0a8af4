"""The mean that the ablation stage sets a channel to."""

import numpy as np
import pytest
import tiny
from ablated import NOTHING, made, stage


def test_means_of_sites_that_are_not_stored_come_from_their_summaries(llama, tmp_path):
    channels = [[site, layer, 3] for site in ("mlp_in", "resid_post") for layer in (0, 3)]
    runs = [
        made(
            llama, tmp_path, 2, name=name, channels=channels, interventions=["mean"],
            extraction={"sites": ["mlp_in", "resid_post"], "store": store, "sequence_shards": 2,
                        "advanced": {"chunk_tokens": 4}}, **NOTHING,
        )
        for name, store in (("stored", ["mlp_in", "resid_post"]), ("summarized", []))
    ]  # fmt: skip
    for run in runs:
        run.ablate()
    stored, summarized = (stage(run).means for run in runs)
    for site, layer, channel in channels:
        x = runs[0].array(site)[layer, :, channel].astype(np.float64)
        # Sums of float64 in another order.
        assert stored(site, layer, channel) == pytest.approx(x.mean(), rel=1e-13)
        assert summarized(site, layer, channel) == pytest.approx(x.mean(), rel=1e-13)
    # As float32, in which a channel is set, they are the same.
    losses = [[row["loss"] for row in run.table("ablations")] for run in runs]
    assert losses[0] == losses[1]


def test_values_that_are_not_finite_are_left_out_of_a_mean(tmp_path):
    """The same from the store as from summaries."""
    model, weights = tiny.silent(tmp_path / "model", layers=2)
    weights["model.embed_tokens.weight"][9, 7] = float("inf")  # the first sequence has it once
    tiny.save_weights(model, weights)
    means = []
    for name, store in (("stored", ["resid_post"]), ("summarized", [])):
        run = made(model, tmp_path, name=name, extraction={"store": store}, **NOTHING)
        run.ablate()
        means.append(stage(run).means("resid_post", 0, 7))
    assert means == [1.0, 1.0]


def test_a_mean_comes_from_a_summary_of_a_lower_floor(llama, tmp_path):
    """Which serves for the higher one that is asked for now, and is not made again."""
    target = {"channels": [["resid_post", 2, 3]], "interventions": ["mean"]} | NOTHING
    losses = []
    for advanced in ({"massive_floor": 8.0}, {}):
        extraction = {"store": [], "advanced": advanced}
        run = made(llama, tmp_path, 2, extraction=extraction, **target)
        run.ablate()
        losses.append(run.table("ablations")[1]["loss"])
        assert len([*run.folder.glob("summaries/*")]) == 1
    assert losses[0] == losses[1]


def test_a_lost_summary_is_made_anew(llama, tmp_path):
    run = made(
        llama, tmp_path, 2, channels=[["resid_post", 2, 3]], extraction={"store": []}, **NOTHING
    )
    (path,) = (run.folder / "summaries").glob("resid_post@*/layer-2/*")
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    with pytest.raises(ValueError, match=r"resid_post, layer 2, chunk 0: .* run again"):
        run.ablate()
    run.extract()
    assert path.read_bytes() == before
    run.ablate()
