"""The store equals what plain hooks on the whole model see, bit for bit, however work is cut."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
import zarr
from pipeline import Run, config, hooked
from safetensors.torch import load_file

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.extraction import compute, layer_group
from outlier_atlas.extraction import run as extraction_run
from outlier_atlas.extraction.capture import LayerGroup
from outlier_atlas.extraction.run import extract
from outlier_atlas.extraction.work import Work
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import Commits
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.run_files import COMMITS

SITES = ["resid_pre", "attn_in", "attn_hidden", "mlp_in", "mlp_hidden", "resid_post"]
MOE_SITES = [site for site in SITES if site != "mlp_hidden"]


def rows(lengths, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(4, 300) for _ in range(length)] for length in lengths]


def stored(run):
    group = zarr.open_group(run.activations, mode="r", use_consolidated=False)
    return {name: group[name][:] for name in run.settings.extraction.sites}


def assert_equal_to_hooks(run, model, batches):
    tokens = TokenStore.open(run.tokens)
    sites = run.settings.extraction.sites
    want = hooked(model, run.settings.model.dtype, tokens, sites, batches)
    got = stored(run)
    for site in sites:
        assert got[site].dtype == np.float32
        assert np.array_equal(got[site].view(np.uint32), want[site].view(np.uint32)), site


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_store_equals_hooks_on_the_whole_model(name, groups, shards, request, tmp_path):
    model = request.getfixturevalue(name)
    sites = SITES if name == "llama" else MOE_SITES
    extraction = {"sites": sites, "layer_groups": groups, "sequence_shards": shards}
    run = Run(tmp_path, config(model, rows([16] * 4), tmp_path / "data", extraction=extraction))
    run.prepare()
    run.extract()
    assert_equal_to_hooks(run, model, [range(i, i + 1) for i in range(4)])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_dtypes_are_exact_too(llama, dtype, tmp_path):
    data = config(
        llama, rows([16] * 2), tmp_path / "data", extraction={"sites": SITES, "layer_groups": 2}
    )
    data["model"]["dtype"] = dtype
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    assert_equal_to_hooks(run, llama, [range(i, i + 1) for i in range(2)])


def test_sequences_of_any_length_share_chunks_without_padding(qwen3_moe, tmp_path):
    lengths = [5, 5, 9, 3, 3, 3, 7]
    extraction = {
        "sites": MOE_SITES,
        "layer_groups": 3,
        "sequence_shards": 2,
        "advanced": {"chunk_tokens": 4},
    }
    data = config(
        qwen3_moe, rows(lengths), tmp_path / "data",
        extraction=extraction, execution={"batch_size": 2},
    )  # fmt: skip
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    # Shards of 3 and 4 sequences; equal lengths together, at most two.
    batches = [range(0, 2), range(2, 3), range(3, 5), range(5, 6), range(6, 7)]
    assert_equal_to_hooks(run, qwen3_moe, batches)
    group = zarr.open_group(run.activations, mode="r")
    assert group["attn_in"].shape == (4, sum(lengths), 32)
    assert group["sequence"][:].tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert group["position"][:].tolist() == [p for n in lengths for p in range(n)]


@pytest.mark.parametrize(
    "architecture",
    [
        transformers.GPT2Config(vocab_size=320, n_embd=32, n_layer=4, n_head=4),
        transformers.OPTConfig(
            vocab_size=320, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64,
            num_hidden_layers=4, num_attention_heads=4,
        ),
        transformers.Gemma2Config(**tiny.SIZES, head_dim=8, sliding_window=4),
        transformers.GPTNeoXConfig(
            **{k: v for k, v in tiny.SIZES.items() if k != "num_key_value_heads"}
        ),
        transformers.Olmo2Config(**tiny.SIZES),
        transformers.LlamaConfig(**tiny.SIZES, tie_word_embeddings=True),
    ],
    ids=lambda c: c.model_type + "-tied" * c.tie_word_embeddings,
)  # fmt: skip
def test_boundaries_are_right_for_learned_positions_and_odd_norms(architecture, tmp_path):
    model = tiny.checkpoint(tmp_path / "model", architecture)
    sites = ["attn_in", "resid_post"]
    extraction = {"sites": sites, "layer_groups": 3}
    run = Run(tmp_path, config(model, rows([12] * 2), tmp_path / "data", extraction=extraction))
    run.prepare()
    run.extract()
    assert_equal_to_hooks(run, model, [range(0, 1), range(1, 2)])


def test_named_layers_only_are_stored_under_their_numbers(llama, tmp_path):
    extraction = {"sites": ["attn_in"], "layers": [2, 0], "layer_groups": 2}
    run = Run(tmp_path, config(llama, rows([8] * 2), tmp_path / "data", extraction=extraction))
    run.prepare()
    run.extract()
    group = zarr.open_group(run.activations, mode="r")
    assert group["layer"][:].tolist() == [0, 2]
    whole = hooked(llama, "bfloat16", TokenStore.open(run.tokens), ["attn_in"], [range(0, 2)])
    assert np.array_equal(group["attn_in"][:], whole["attn_in"][[0, 2]])
    # Layer 3 never runs: it is in no layer group.
    assert json.loads(run.store_record.read_text())["layer_groups"] == [[0, 0], [1, 2]]


def test_the_store_opens_as_documented(llama, tmp_path):
    run = Run(tmp_path, config(llama, rows([8] * 4), tmp_path / "data"))
    run.prepare()
    run.extract()
    array = zarr.open(run.activations)["attn_in"]
    assert array.shape == (4, 32, 32)
    assert array.dtype == np.float32
    assert array.metadata.dimension_names == ("layer", "token", "channel")
    assert array.chunks == (1, 2048, 32), "also where there are fewer tokens yet"
    assert np.isnan(array.fill_value)


def test_a_second_job_finds_its_work_done_and_loads_nothing(llama, tmp_path, monkeypatch):
    run = Run(tmp_path, config(llama, rows([8] * 4), tmp_path / "data"))
    run.prepare()
    run.extract()
    manifest = run.job(0, 0).manifest
    before = manifest.read_bytes()
    manifest.unlink()
    monkeypatch.setattr(extraction_run, "_compute", lambda *_: pytest.fail("computed again"))
    run.extract()
    assert manifest.read_bytes() == before


def test_what_is_missing_is_computed_and_nothing_else_is_written(llama, tmp_path, monkeypatch):
    extraction = {"layer_groups": 2, "advanced": {"chunk_tokens": 8}}
    run = Run(tmp_path, config(llama, rows([8] * 4), tmp_path / "data", extraction=extraction))
    run.prepare()
    run.extract()
    want = stored(run)
    log = next((run.folder / COMMITS).glob("group-1*.jsonl"))
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:40])  # as a kill leaves it
    lost = {json.loads(line)["start"] for line in lines[2:]}
    written = []
    write = Arrays.write
    monkeypatch.setattr(
        Arrays,
        "write",
        lambda self, target, start, values: (
            written.append(start),
            write(self, target, start, values),
        ),
    )
    run.extract()
    assert set(written) == lost
    for site, values in stored(run).items():
        assert np.array_equal(values, want[site])


def test_another_cut_of_the_work_computes_nothing(llama, tmp_path, monkeypatch):
    data = config(llama, rows([8] * 4), tmp_path / "data")
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    monkeypatch.setattr(extraction_run, "_compute", lambda *_: pytest.fail("computed again"))
    again = Run(tmp_path, data | {"extraction": {"layer_groups": 3, "sequence_shards": 2}})
    again.create_store()
    again.extract()


def test_a_changed_model_makes_every_row_stale(llama, tmp_path):
    run = Run(tmp_path, config(llama, rows([8] * 2), tmp_path / "data"))
    run.prepare()
    run.extract()
    layout = Layout.from_record(json.loads(run.store_record.read_text()))
    work = Work(layout, TokenStore.open(run.tokens), "another model", 0, 0)
    assert set(work.missing(Commits.load(run.folder / COMMITS), 1)) == set(work.rows)


def test_a_replaced_array_loses_its_commits(llama, tmp_path):
    data = config(llama, rows([8] * 2), tmp_path / "data")
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    again = Run(tmp_path, data | {"extraction": {"layers": [0, 1], "sites": ["attn_in"]}})
    again.create_store()
    again.extract()
    assert np.isfinite(stored(again)["attn_in"]).all()
    # Without the sites in between, and then with them again: nothing stale is believed.
    run.create_store()
    run.extract()
    assert np.isfinite(stored(run)["mlp_in"]).all()


def test_a_damaged_chunk_is_an_error_that_names_it(llama, tmp_path):
    run = Run(tmp_path, config(llama, rows([8] * 2), tmp_path / "data"))
    run.prepare()
    run.extract()
    chunk = run.activations / "mlp_in" / "c" / "2" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match=r"mlp_in, layer 2, chunk 0: damaged .* run again"):
        run.detect()


def test_back_to_an_earlier_configuration_is_computed_anew(llama, tmp_path):
    """Its rows were overwritten in between: an old commit does not stand for them."""
    data = config(llama, rows([8] * 4), tmp_path / "data", extraction={"layer_groups": 2})
    first = Run(tmp_path, data)
    first.prepare()
    first.extract()
    want = stored(first)
    other = Run(tmp_path, data | {"model": {"source": str(llama), "dtype": "float32"}})
    other.create_store()
    extract(other.job(0, 0))  # and then a kill: the second layer group still has the old rows
    first.create_store()
    first.extract()
    for site, values in stored(first).items():
        assert np.array_equal(values, want[site])


def test_arrays_that_went_away_are_computed_anew(llama, tmp_path):
    data = config(llama, rows([8] * 2), tmp_path / "data", extraction={"layer_groups": 2})
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    want = stored(run)
    shutil.rmtree(run.activations)
    shutil.rmtree(run.folder / "boundaries.zarr")
    run.create_store()
    run.extract()
    for site, values in stored(run).items():
        assert np.array_equal(values, want[site])


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("lengths", [[8] * 6, [5, 9, 3, 7, 7, 2]])
def test_a_resume_with_other_layer_groups_reads_no_boundary_that_is_not_there(
    llama, tmp_path, lengths, batch_size
):
    """Sequences lie in several chunks, and a kill left some chunks of the last layers undone."""
    small = {"advanced": {"chunk_tokens": 4}}
    data = config(
        llama, rows(lengths), tmp_path / "data",
        extraction=small | {"layer_groups": 2}, execution={"batch_size": batch_size},
    )  # fmt: skip
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    want = stored(run)
    log = next((run.folder / COMMITS).glob("group-1*.jsonl"))
    lines = log.read_text().splitlines(keepends=True)
    last = max(json.loads(line)["chunk"] for line in lines)
    log.write_text("".join(x for x in lines if json.loads(x)["chunk"] not in (2, 5, last)))
    for array in ("attn_in", "mlp_in", "resid_post"):
        for chunk in (2, 5, last):
            (run.activations / array / "c" / "3" / str(chunk) / "0").unlink(missing_ok=True)
    again = Run(tmp_path, data | {"extraction": small | {"layer_groups": 4}})
    again.create_store()
    again.extract()
    again.detect()
    for site, values in stored(again).items():
        assert np.array_equal(values, want[site])


def test_a_boundary_that_does_not_count_is_not_read(llama, tmp_path):
    data = config(llama, rows([8] * 2), tmp_path / "data", extraction={"layer_groups": 2})
    run = Run(tmp_path, data)
    run.prepare()
    with pytest.raises(ValueError, match="the residual stream before them lacks tokens 0 to 15"):
        extract(run.job(1, 0))


SHORT = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.16 GiB."),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 17.93 GB)"),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "numpy": MemoryError("Unable to allocate 1.16 GiB for an array"),
}


@pytest.mark.parametrize("device", SHORT)
def test_out_of_memory_goes_on_in_smaller_batches_without_loading_again(
    llama, tmp_path, monkeypatch, caplog, device
):
    data = config(llama, rows([8] * 8), tmp_path / "data", execution={"batch_size": 8})
    run = Run(tmp_path, data | {"extraction": {"advanced": {"chunk_tokens": 8}}})
    run.prepare()
    loads, seen = [], []
    load, forward = compute.load, LayerGroup.run

    def limited(self, batch, keep):
        seen.append(len(batch))
        given = iter(range(5))

        def short_of_memory(tap, tensor):
            if len(batch) > 2 and next(given) == 4:
                raise SHORT[device]
            keep(tap, tensor)

        forward(self, batch, short_of_memory)

    monkeypatch.setattr(compute, "load", lambda *a: loads.append(1) or load(*a))
    monkeypatch.setattr(LayerGroup, "run", limited)
    with caplog.at_level("WARNING", "outlier_atlas"):
        run.extract()
    assert (loads, seen) == ([1], [8, 4, 2, 2, 2, 2])
    assert "out of memory on cpu; going on with batches of 4" in caplog.text
    assert_equal_to_hooks(run, llama, [range(i, i + 2) for i in range(0, 8, 2)])


@pytest.mark.parametrize(
    ("where", "groups", "said", "block"),
    [
        (LayerGroup, 1, r"a single sequence; take more extraction\.layer_groups \(now 1\)", 2),
        (LayerGroup, 4, r"take a shorter dataset\.sequence_length \(now 8\)", 4),
        (layer_group, 1, r"weights were loaded; take more extraction\.layer_groups \(now 1\)", 2),
        (layer_group, 4, "they need a device with more memory", None),
    ],
)
def test_out_of_memory_says_what_to_do(
    where, groups, said, block, llama, tmp_path, monkeypatch, caplog
):
    data = config(llama, rows([8] * 2), tmp_path / "data", extraction={"layer_groups": groups})
    run = Run(tmp_path, data)
    run.prepare()

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(where, "run" if where is LayerGroup else "move_to_devices", full)
    with pytest.raises(ValueError, match=said):
        run.extract()
    assert ("This takes less" in caplog.text) == (block is not None)
    assert block is None or f"layer_groups: {block}" in caplog.text
    assert ("sequence_length: 4" in caplog.text) == (where is LayerGroup and groups == 4)


def test_another_error_is_not_taken_for_short_memory(llama, tmp_path, monkeypatch):
    data = config(llama, rows([8] * 2), tmp_path / "data", execution={"batch_size": 2})
    run = Run(tmp_path, data)
    run.prepare()
    seen = []

    def broken(*_):
        seen.append(1)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(LayerGroup, "run", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run.extract()
    assert seen == [1]


def test_a_checkpoint_that_lacks_a_weight_is_refused(llama, tmp_path):
    model = tiny.llama(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    tiny.save_weights(model, weights)
    run = Run(tmp_path, config(model, rows([8]), tmp_path / "data"))
    with pytest.raises(
        ValueError, match=r"lacks weights of .* \(1\), such as .*layers\.1\.mlp\.up_proj"
    ):
        run.prepare()


def test_a_checkpoint_with_a_weight_of_another_shape_is_refused(tmp_path):
    model = tiny.llama(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tiny.save_weights(model, weights | {name: weights[name][:-1].contiguous()})
    run = Run(tmp_path, config(model, rows([8]), tmp_path / "data"))
    with pytest.raises(
        ValueError, match=r"in another shape than its config\.json states \(1\).*1\.mlp\.up_proj"
    ):
        run.prepare()


@pytest.mark.parametrize(
    ("extraction", "message"),
    [
        ({"sites": ["mlp_hidden"]}, "no mlp_hidden in layer 0.*it has resid_pre, attn_in"),
        ({"layers": [1, 7]}, "no layer 7; it has 4"),
        ({"layer_groups": 5}, "layer_groups = 5.*take at most 4"),
    ],
)
def test_what_the_architecture_lacks_is_said(qwen3_moe, extraction, message, tmp_path):
    run = Run(tmp_path, config(qwen3_moe, rows([8]), tmp_path / "data", extraction=extraction))
    with pytest.raises(ValueError, match=message):
        run.prepare()
    assert not Path(run.activations).exists()


MANY = {"verify": "first_batch", "layer_groups": 2, "sites": ["resid_pre", "mlp_in", "resid_post"]}


def test_the_first_batch_is_compared_with_a_direct_forward_pass(llama, tmp_path, caplog):
    run = Run(tmp_path, config(llama, rows([8] * 2), tmp_path / "data", extraction=MANY))
    run.prepare()
    with caplog.at_level("INFO", "outlier_atlas"):
        run.extract()
    assert caplog.text.count("the first batch equals a direct forward pass") == 2
    assert_equal_to_hooks(run, llama, [range(1), range(1, 2)])


@pytest.mark.parametrize("layer", [1, 2])
def test_what_differs_from_a_direct_forward_pass_in_one_bit_is_not_stored(
    llama, tmp_path, monkeypatch, layer
):
    run = Run(tmp_path, config(llama, rows([8] * 2), tmp_path / "data", extraction=MANY))
    run.prepare()
    forward = LayerGroup.run

    def wrong(self, batch, keep):
        def change(tap, tensor):
            if (tap.site, tap.layer) == ("mlp_in", layer):
                tensor = tensor.clone()
                tensor.view(torch.int16)[0, -1, -1] ^= 1
            keep(tap, tensor)

        forward(self, batch, change)

    monkeypatch.setattr(LayerGroup, "run", wrong)
    with pytest.raises(ValueError, match=f"mlp_in of layer {layer} is not what a direct forward"):
        run.extract()
    committed = {path.stem: path.read_text() for path in (run.folder / COMMITS).glob("*.jsonl")}
    group = layer // 2
    assert committed.pop(f"group-{group}.shard-0") == ""
    assert all(committed.values()), "what came before it counts"


@pytest.mark.parametrize(("batches", "compared"), [(50, False), (51, True)])
def test_the_first_batch_is_compared_by_itself_where_it_costs_little(
    llama, tmp_path, caplog, batches, compared
):
    run = Run(tmp_path, config(llama, rows([2] * batches), tmp_path / "data"))
    run.prepare()
    with caplog.at_level("INFO", "outlier_atlas"):
        run.extract()
    assert ("equals a direct forward pass" in caplog.text) == compared
