"""What is recorded of experts, in the store: exact in any division, and counted whole or not."""

import shutil

import numpy as np
import pytest
import tiny
import torch
import zarr
from experts import ARCHITECTURES, PARTS, extracted, name, reference, stored

from outlier_atlas.store.chunks import ChunkFiles


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Each architecture's checkpoint, and what its experts give."""
    made = {}
    for architecture in ARCHITECTURES:
        folder = tmp_path_factory.mktemp(architecture.model_type)
        tiny.checkpoint(folder, architecture)
        made[architecture.model_type] = folder, reference(folder)
    return made


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=name)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_store_holds_what_the_whole_model_gives(architecture, groups, checkpoints, tmp_path):
    folder, want = checkpoints[architecture.model_type]
    run = extracted(folder, tmp_path, layer_groups=groups, sequence_shards=2, verify="first_batch")
    assert np.array_equal(stored(run), want)
    group = zarr.open_group(run.activations, mode="r")
    for part, dtype in zip(PARTS, ("float32", "int32", "int32", "float32", "int32"), strict=True):
        assert group[part].dtype == dtype
        assert group[part].metadata.dimension_names == ("layer", "token", "routed")


def test_small_chunks_and_other_dtypes_are_exact_too(checkpoints, tmp_path):
    folder, _ = checkpoints["qwen3_moe"]
    run = extracted(folder, tmp_path, dtype="float32", advanced={"chunk_tokens": 4})
    assert np.array_equal(stored(run), reference(folder, dtype=torch.float32))


def test_other_sites_are_the_same_beside_it(checkpoints, tmp_path):
    folder, want = checkpoints["gpt_oss"]
    sites = ["router_logits", "mlp_out", "resid_post"]
    alone = extracted(folder, tmp_path, "alone", sites=sites)
    beside = extracted(folder, tmp_path, "beside", sites=[*sites, "expert_out"])
    assert np.array_equal(stored(beside), want)
    for site in sites:
        assert np.array_equal(alone.array(site), beside.array(site))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["overwritten", "deleted"])
def test_a_damaged_part_is_made_anew_with_the_others(part, damage, checkpoints, tmp_path):
    folder, want = checkpoints["qwen3_moe"]
    run = extracted(folder, tmp_path, advanced={"chunk_tokens": 4})
    run.detect()
    chunk = run.activations / part / "c" / "2" / "1" / "0"
    others = [run.activations / other / "c" / "2" / "1" / "0" for other in PARTS if other != part]
    if damage == "deleted":
        chunk.unlink()
    else:
        chunk.write_bytes(b"\0" * chunk.stat().st_size)
    shutil.rmtree(run.folder / "summaries")  # nothing is read where they are there
    before = [other.stat().st_mtime_ns for other in others]
    with pytest.raises(ValueError, match=r"expert_out, layer 2, chunk 1: damaged .* run again"):
        run.detect()
    run.extract()
    assert all(o.stat().st_mtime_ns > b for o, b in zip(others, before, strict=True))
    run.detect()
    assert np.array_equal(stored(run), want)


def test_a_part_that_went_away_takes_the_others_with_it(checkpoints, tmp_path):
    folder, want = checkpoints["qwen3_moe"]
    run = extracted(folder, tmp_path)
    del zarr.open_group(run.activations, mode="a")["expert_out_channel"]
    with pytest.raises(ValueError, match=r"expert_out_channel/zarr\.json: damaged .*; run again"):
        run.detect()
    run.create_store()
    with pytest.raises(ValueError, match="expert_out, layer 0, tokens 0 to 19 were never computed"):
        run.detect()
    run.extract()
    assert np.array_equal(stored(run), want)


@pytest.mark.parametrize("writes", range(0, 22, 5))
def test_a_kill_between_the_parts_leaves_nothing_that_counts(
    writes, checkpoints, tmp_path, monkeypatch
):
    """Whatever was written before it, what was committed is complete and stays as it is."""
    folder, want = checkpoints["qwen3_moe"]
    write, left = ChunkFiles.write, [writes]

    def stop(self, *args):
        if not left[0]:
            raise OSError("killed")
        left[0] -= 1
        return write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkFiles, "write", stop)
        with pytest.raises(OSError, match="killed"):
            extracted(folder, tmp_path, advanced={"chunk_tokens": 7})
    run = extracted(folder, tmp_path, advanced={"chunk_tokens": 7})
    assert np.array_equal(stored(run), want)
