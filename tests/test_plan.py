"""Plan: what a run takes, known before a weight is read."""

import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import quantized
import tiny
import torch
import transformers as t
from pipeline import Run, config
from safetensors.torch import load_file

from outlier_atlas.checkpoint.folder import weight_files
from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.devices import limits
from outlier_atlas.devices.limits import available
from outlier_atlas.job_metrics import records
from outlier_atlas.loading.footprint import sizes
from outlier_atlas.loading.partial import build_on_meta, load_layers, load_model, weight_bytes
from outlier_atlas.loading.shards import file_bytes
from outlier_atlas.plan import expected
from outlier_atlas.plan.group import HEAP_BYTES, PROCESS_BYTES
from outlier_atlas.plan.memory_budget import MemoryBudget
from outlier_atlas.plan.table import table
from outlier_atlas.roles.architecture import describe
from outlier_atlas.settings.extraction import even_ranges
from outlier_atlas.units import bytes_of, duration, shown

ROWS = [[5, 17, 200, 9] * 4] * 2


@pytest.mark.parametrize(
    "architecture",
    [
        t.LlamaConfig(**tiny.SIZES),
        t.LlamaConfig(**tiny.SIZES, tie_word_embeddings=True),
        t.Qwen3MoeConfig(
            **tiny.SIZES, head_dim=8, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16
        ),
        t.GPT2Config(vocab_size=320, n_embd=32, n_layer=4, n_head=4),
        t.Gemma2Config(**tiny.SIZES, head_dim=8, sliding_window=4),
        quantized.LLAVA,
        quantized.DEEPSEEK_V3,  # of which a bias is in float32 whatever the dtype
    ],
    ids=lambda c: c.model_type + "-tied" * c.tie_word_embeddings,
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_planned_weights_are_those_that_are_loaded(architecture, dtype, tmp_path):
    model = tiny.checkpoint(tmp_path / "model", architecture)
    config = load_config(model)
    described = describe(config)
    planned = sizes(config, described, dtype, 16)
    for part in ((0, 4), (2, 4)):
        with_head = load_model(model, config, described, range(*part), dtype, head=True)
        assert planned.weights(range(*part), head=True) == weight_bytes(with_head)
    for groups in (1, 2, 3):
        for part in even_ranges(4, groups):
            loaded = load_layers(model, config, described, range(*part), dtype)
            assert planned.weights(range(*part)) == weight_bytes(loaded)


def test_the_forward_pass_holds_what_its_largest_layer_holds(llama):
    """The peak grows with the tokens, not with the number of layers."""
    config = load_config(llama)
    described = describe(config)
    one, two = (sizes(config, described, "bfloat16", tokens).forward for tokens in (64, 128))
    assert one is not None
    assert 1.9 < two / one < 3
    hidden = 64 * 32 * 2
    assert 3 * hidden < one < 30 * hidden


def test_the_forward_pass_of_experts_is_known_in_every_dtype(qwen3_moe):
    config = load_config(qwen3_moe)
    half, other, single = (
        sizes(config, describe(config), dtype, 16).forward
        for dtype in ("bfloat16", "float16", "float32")
    )
    assert half is not None
    assert (other, single) == (half, 2 * half)


def test_a_model_whose_own_code_fails_in_a_dtype_is_refused_in_it():
    config = t.XLNetConfig(
        vocab_size=320, d_model=32, n_layer=2, n_head=4, d_inner=64, attn_type="uni"
    )
    described = describe(config)
    assert sizes(config, described, "float32", 16).weights(range(2)) > 0
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(ValueError, match=f"'{dtype}': XLNet.* does not run in this dtype"):
            sizes(config, described, dtype, 16)


def test_the_last_layer_group_holds_the_logits_of_a_piece(llama):
    """The peak has float32 logits and their logarithms; the bfloat16 logits are freed by then."""
    config = load_config(llama)
    for tokens in (64, 128):
        losses = sizes(config, describe(config), "bfloat16", tokens).losses
        logits = (tokens - 1) * 320
        assert (4 + 4) * logits <= losses < 1.1 * (4 + 4) * logits + 2**14


def test_fused_experts_are_seen(llama, qwen3_moe):
    experts = [
        sizes(c, describe(c), "float32", 16).fused for c in map(load_config, (llama, qwen3_moe))
    ]
    assert experts == [0, 8 * 2 * 16 * 32 * 4]


def test_file_bytes_are_those_of_the_headers(llama, qwen3_moe):
    for folder in (llama, qwen3_moe):
        files = weight_files(folder)
        by_layer = file_bytes(folder, files, describe(load_config(folder)))
        assert set(by_layer) == {-1, 0, 1, 2, 3}
        assert len({by_layer[layer] for layer in range(4)}) == 1
        whole = sum((folder / name).stat().st_size for name in files)
        assert 0.7 * whole < sum(by_layer.values()) < whole, "all but the headers"


@pytest.mark.parametrize(
    "architecture",
    [
        t.LlamaConfig(**tiny.SIZES),
        t.LlamaConfig(**tiny.SIZES, tie_word_embeddings=True),
        t.GPT2Config(vocab_size=320, n_embd=32, n_layer=4, n_head=4),
        t.OPTConfig(
            vocab_size=320, hidden_size=32, ffn_dim=64, num_hidden_layers=4, num_attention_heads=4,
            word_embed_proj_dim=32, max_position_embeddings=64,
        ),
        quantized.LLAVA,
    ],
    ids=lambda c: c.model_type + "-tied" * c.tie_word_embeddings,
)  # fmt: skip
def test_a_bfloat16_checkpoint_has_the_bytes_on_disk_that_it_has_in_memory(architecture, tmp_path):
    """Embedding, final norm and head are included in the group that loads them."""
    model = tiny.checkpoint(tmp_path / "model", architecture)
    extraction = {"layer_groups": 2, "perplexity": True}
    run = Run(tmp_path, config(model, ROWS, tmp_path / "data", extraction=extraction))
    run.prepare()
    described = load_config(model)
    decoder = build_on_meta(described, describe(described), range(4), "bfloat16")
    made_up = sum(buffer.nbytes for buffer in decoder.buffers())  # frequencies of the rotation
    for plan in (run.planned(), run.planned().divided(1)):
        for group in plan.groups:
            assert group.file == group.weights - made_up


def test_layers_that_predict_several_tokens_are_named_and_not_loaded(tmp_path):
    """DeepSeek-V3 has them after its last layer, Qwen3-Next in a separate part."""
    model = tiny.llama(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    before = file_bytes(model, weight_files(model), describe(load_config(model)))
    more = {
        f"{place}.mlp.up_proj.weight": torch.ones(8, 8)
        for place in ("model.layers.4", "mtp.layers.0")
    }
    tiny.save_weights(model, weights | more)
    run = Run(tmp_path, config(model, ROWS, tmp_path / "data"))
    run.all()
    assert run.planned().skipped == ("lm_head", "layers.4", "mtp")
    after = file_bytes(model, weight_files(model), describe(load_config(model)))
    assert after == before | {-1: before[-1] + 2 * 8 * 8 * 4}


def test_a_plan_adds_up(run):
    made = run.planned()
    first, last = made.groups
    assert (first.layers, last.layers) == ((0, 1), (2, 3))
    assert first.weights > last.weights, "the embedding"
    assert first.sites == 2 * 3 * 32 * 16 * 2
    assert (first.boundary, last.boundary) == (32 * 16 * 2, 0)
    assert first.device == first.weights + first.forward + first.sites + first.boundary
    assert (first.entering, last.entering) == (0, 32 * 16 * 4)
    working = last.forward + last.entering
    assert last.device == last.weights + working + last.sites
    copies = last.sites + last.written + 2 * last.entering
    assert last.host_alone == PROCESS_BYTES + last.weights + working + copies + HEAP_BYTES
    assert made.values == 4 * 3 * 32 * 32
    assert made.files == 4 * 3 * 2 + 1, "chunks and their summaries, and a boundary"
    assert made.peak(host=False) == first.device
    assert first.written == 2 * 2 * 4 * 32 * 16, "two threads, each with values and their chunk"
    streaming = first.forward + first.sites + first.boundary + first.written
    assert first.host_alone == PROCESS_BYTES + first.weights + streaming + HEAP_BYTES


def test_a_memory_that_host_and_device_share_must_hold_both(run):
    made = run.planned()
    first = made.groups[0]
    both = first.host_alone - HEAP_BYTES
    assert both == PROCESS_BYTES + first.device + first.written + first.gathered
    shared = MemoryBudget("mps", both, "this machine", both)
    assert made.fits(shared)
    assert shared.host_available is None, "not checked a second time"
    assert not made.fits(replace(shared, memory=both - 1, host_memory=both - 1))
    assert shown(both) in table(made, shared, ["Time: a guess."], run.folder)


def test_a_plan_counts_five_numbers_for_each_expert_of_a_token(qwen3_moe, tmp_path):
    extraction = {"sites": ["mlp_in", "expert_out"]}
    run = Run(tmp_path, config(qwen3_moe, ROWS, tmp_path / "data", extraction=extraction))
    run.prepare()
    made = run.planned()
    routed = 2
    assert made.groups[0].sites == 4 * 16 * (32 * 2 + 5 * routed * 4)
    assert made.values == 4 * 32 * (32 + 5 * routed)
    assert made.files == 4 * (6 + 2)


def test_a_plan_counts_what_is_not_stored_as_summaries(llama, tmp_path):
    sites = ["attn_in", "mlp_in", "mlp_hidden"]
    extraction = {"sites": sites, "layer_groups": 4, "store": []}
    run = Run(tmp_path, config(llama, ROWS, tmp_path / "data", extraction=extraction))
    run.prepare()
    made = run.planned()
    assert made.values == 0
    assert made.boundary_values == 2 * 32 * 32, "one is read while the next is written"
    assert made.groups[0].sites == 16 * (32 + 32 + 64) * 2
    assert made.groups[0].summarized == 2 * 4 * 64 * 16
    run.extract()
    files = [path for path in (run.folder / "summaries").rglob("*") if path.is_file()]
    assert len(files) == 3 * 4
    # Histograms of tiny tiles are far from full, and what is counted has no header.
    measured = sum(path.stat().st_size for path in files)
    assert made.summary_bytes / 8 < measured < made.summary_bytes


def test_a_batch_of_two_takes_twice_what_a_batch_holds(run):
    one, two = run.planned(), run.planned().batched(2)
    for a, b in zip(one.groups, two.groups, strict=True):
        assert (b.forward, b.entering) == (2 * a.forward, 2 * a.entering)
        assert (b.sites, b.boundary) == (2 * a.sites, 2 * a.boundary)
        assert b.weights == a.weights


def test_one_job_says_the_plan_and_every_job_measures_itself(run, caplog):
    caplog.set_level("INFO")
    run.extract()
    assert sum(record.getMessage().startswith("Plan: ") for record in caplog.records) == 1
    first, last = records(run.folder)
    assert (first.layers, last.layers) == ([0, 1], [2, 3])
    assert (first.tokens, first.batch_size, first.device) == (32, 1, "cpu")
    assert first.host > 2**20
    assert first.predicted_host == replace(run.planned(), gathers=True).groups[0].host_alone
    before = [path.read_bytes() for path in sorted((run.folder / "measured").iterdir())]
    run.extract()
    assert before == [path.read_bytes() for path in sorted((run.folder / "measured").iterdir())]


def test_the_table_fits_a_terminal(run):
    made = run.planned()
    for name, called, memory in (
        ("cpu", "this machine", "Memory: this machine has 16.0 GiB for each of 2 jobs side by"),
        ("mps", "this machine", "2 jobs side by side, of which the device takes its part.\nDisk"),
        ("a device", "it", "Memory: it has 16.0 GiB.\nIts host has 16.0 GiB for each"),
    ):
        place = MemoryBudget(name, 2**34, called, 2**34, jobs=2)
        known = expected.Place(name, cores=2, at_once=2)
        time = expected.whole_run(made, known, expected.Stages(1000, 16, done=["ablate"]))
        lines = expected.lines(time, "without fetching", measured=True)
        said = table(made, place, lines, run.folder)
        assert memory in said
        assert max(map(len, said.splitlines())) <= 120
        assert "Not loaded: lm_head." in said


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/a/b", {"a/memory.max": 5000, "a/memory.current": 1000, "a/b/memory.max": "max"}),
        (
            "4:memory:/a/b\n0::/",
            {"memory/a/memory.limit_in_bytes": 5000, "memory/a/memory.usage_in_bytes": 1000},
        ),
    ],
)
def test_the_limits_of_nested_control_groups_count(membership, files, tmp_path, monkeypatch):
    for name, size in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{size}\n")
    (tmp_path / "cgroup").write_text(f"{membership}\n")
    monkeypatch.setattr(limits, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "resident", lambda: 0)
    assert limits.host_memory() == 4000


def test_this_machine_says_what_it_has():
    size, name = available("cpu")
    assert name == "this machine"
    assert size is None or size > 2**20


@pytest.mark.parametrize(
    ("size", "text"), [(2**30, "1.00 GiB"), (61_300_000_000, "57.1 GiB"), (3 * 2**19, "1.50 MiB")]
)
def test_sizes_are_readable(size, text):
    assert shown(size) == text
    assert bytes_of("24GiB") == 24 * 2**30


@pytest.mark.parametrize(("seconds", "text"), [(0, "1 s"), (720, "12 min"), (12600, "3.5 h")])
def test_times_are_readable(seconds, text):
    assert duration(seconds) == text


def test_a_limit_of_a_process_must_hold_the_stacks_of_threads_that_are_yet_to_start(monkeypatch):
    monkeypatch.setattr(limits.os, "cpu_count", lambda: 2)
    soft = {resource.RLIMIT_AS: 2**40, resource.RLIMIT_STACK: 2**23}
    monkeypatch.setattr(
        limits.resource, "getrlimit", lambda limit: (soft.get(limit, resource.RLIM_INFINITY),) * 2
    )
    (left,) = limits._limits()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    assert abs(2**40 - used - (limits.LATER_THREADS + 2) * 2**23 - left) < 2**22
