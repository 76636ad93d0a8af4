"""Damage to what the ablation stage keeps: named, never counted, and alone made anew."""

import shutil

import pytest
import tiny
from ablated import NOTHING, counted, made
from safetensors.torch import load_file
from test_damage import flip, said

from outlier_atlas.ablation.streams import Streams
from outlier_atlas.extraction.capture import LayerGroup
from outlier_atlas.files import DamagedFileError


def rows_of(run, boundary):
    """The files of all variants at a boundary; behind the last layer group their losses."""
    return sorted((run.folder / "ablation").rglob(f"[!.]*-{boundary}.rows"))


CUT = 7
"""Bytes; no whole number of checksums."""


def neighbour(path):
    """Intact, and of another variant."""
    other = next(each for each in path.parent.iterdir() if each != path)
    path.write_bytes(other.read_bytes())


ROW_DAMAGES = {
    "a flipped bit": flip,
    "of its checksums": lambda path: flip(path, -1),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-CUT]),
    "cut at a row": lambda path: path.write_bytes(path.read_bytes()[: -18 * 4]),
    "emptied": lambda path: path.write_bytes(b""),
    "intact, but another": neighbour,
}


def interrupted(run, monkeypatch, step):
    """Run the stage until a step, and end it there."""
    writing, steps = Streams.writing, []

    def at_the_step(self, place):
        steps.append(place)
        if len(steps) == step:
            raise KeyboardInterrupt
        return writing(self, place)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Streams, "writing", at_the_step)
        run.ablate()


@pytest.mark.parametrize("damage", ROW_DAMAGES)
def test_damaged_residual_streams_and_losses_are_named_and_alone_made_anew(
    damage, llama, tmp_path, monkeypatch
):
    """Two variants of layer 2 begin at the boundary of the model as it is, before layer group 1."""
    channels = [["resid_post", 2, 3], ["resid_post", 2, 4]]
    run = made(llama, tmp_path, 2, channels=channels, interventions=["zero"], **NOTHING)
    run.ablate()
    want = run.table("ablations")

    shutil.rmtree(run.folder / "ablation")
    interrupted(run, monkeypatch, step=3)
    passes = counted(monkeypatch)
    (boundary,) = rows_of(run, 1)
    ROW_DAMAGES[damage](boundary)
    with pytest.raises(DamagedFileError, match=rf"{boundary}: damaged .*run again: it will be"):
        run.ablate()
    boundary.unlink()  # as the rule script does
    passes.clear()
    run.ablate()
    assert passes == {0: 2, 2: 4}, "the losses of the model as it is are kept"
    assert run.table("ablations") == want

    spoilt = rows_of(run, 2)[1]
    ROW_DAMAGES[damage](spoilt)
    with pytest.raises(DamagedFileError, match=f"{spoilt}: damaged"):
        run.ablate()
    assert f"{spoilt}: damaged" in said(run)
    assert not spoilt.exists()
    run.verify()
    run.ablate()
    assert run.table("ablations") == want


def test_no_flipped_bit_of_losses_is_believed(llama, tmp_path):
    run = made(llama, tmp_path, **NOTHING)
    run.ablate()
    (path,) = rows_of(run, 1)
    data = path.read_bytes()
    for index in range(8 * len(data)):
        flip(path, index // 8, 1 << index % 8)
        with pytest.raises(DamagedFileError):
            run.take_away()
        path.write_bytes(data)
    run.take_away()


def test_damaged_held_out_tokens_are_named_and_taken_away(llama, tmp_path):
    run = made(llama, tmp_path, **NOTHING)
    run.ablate()
    flip(run.heldout)
    with pytest.raises(DamagedFileError, match=f"{run.heldout}: damaged .it is not the file"):
        run.take_away()
    assert said(run).count(f"{run.heldout}: damaged") == 1
    assert not run.heldout.exists()
    flip(run.heldout_record)
    assert f"{run.heldout_record}: damaged" in said(run)


def test_weights_that_change_under_the_stage_are_noticed(llama, tmp_path, monkeypatch):
    model = shutil.copytree(llama, tmp_path / "model")
    run = made(model, tmp_path, 2, **NOTHING)
    forward, passes = LayerGroup.run_directly, []

    def replaced_in_the_second_pass(self, *args):
        passes.append(1)
        if len(passes) == 2:
            weights = load_file(model / "model.safetensors")
            weights["model.layers.3.mlp.down_proj.weight"] *= 0.5
            tiny.save_weights(model, weights)
        return forward(self, *args)

    monkeypatch.setattr(LayerGroup, "run_directly", replaced_in_the_second_pass)
    with pytest.raises(DamagedFileError, match=r"model\.safetensors: not the file that"):
        run.ablate()
    assert not rows_of(run, "*"), "nothing that they gave is kept"
