"""The plan: what a run takes, known before a weight is read."""

import pytest
import quantized
import tiny
import transformers as t
from pipeline import Run, config

from outlier_atlas.extraction import run as extraction_run
from outlier_atlas.extraction.plan import available, bytes_of, plan, shown
from outlier_atlas.files import read_record
from outlier_atlas.model.architecture import describe
from outlier_atlas.model.checkpoint import weight_files
from outlier_atlas.model.footprint import file_bytes, sizes
from outlier_atlas.model.partial import load_layers, weight_bytes
from outlier_atlas.model.source import load_config
from outlier_atlas.settings.extraction import even_ranges
from outlier_atlas.store.layout import Layout

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
    planned = sizes(config, described, dtype, 1, 16)
    for groups in (1, 2, 3):
        for part in even_ranges(4, groups):
            loaded = load_layers(model, config, described, range(*part), dtype)
            assert planned.weights(range(*part)) == weight_bytes(loaded)


def test_the_forward_pass_holds_what_its_largest_layer_holds(llama):
    """Grows with the batch, and not with the number of layers."""
    config = load_config(llama)
    described = describe(config)
    one, two = (sizes(config, described, "bfloat16", batch, 64).forward for batch in (1, 2))
    assert one is not None
    assert 1.9 < two / one <= 2
    hidden = 64 * 32 * 2
    assert 3 * hidden < one < 30 * hidden


def test_file_bytes_are_those_of_the_headers(llama, qwen3_moe):
    for folder in (llama, qwen3_moe):
        files = weight_files(folder)
        by_layer = file_bytes(folder, files, describe(load_config(folder)))
        assert set(by_layer) == {-1, 0, 1, 2, 3}
        assert len({by_layer[layer] for layer in range(4)}) == 1
        whole = sum((folder / name).stat().st_size for name in files)
        assert 0.7 * whole < sum(by_layer.values()) < whole, "all but the headers"


@pytest.fixture
def run(llama, tmp_path):
    data = config(llama, ROWS, tmp_path / "data", extraction={"layer_groups": 2})
    run = Run(tmp_path, data)
    run.prepare()
    return run


def planned(run):
    layout = Layout.from_record(read_record(run.store_record))
    return plan(layout, read_record(run.model_record), run.resources, 1, 16, False, False)


def test_a_plan_adds_up(run):
    made = planned(run)
    first, last = made.groups
    assert (first.layers, last.layers) == ((0, 1), (2, 3))
    assert first.weights > last.weights, "the embedding"
    assert first.sites == 2 * 3 * 32 * 16 * 2
    assert (first.boundary, last.boundary) == (32 * 16 * 2, 0)
    assert first.device == first.weights + first.forward + first.sites + first.boundary
    assert made.values == 4 * 3 * 32 * 32
    assert made.files == 4 * 3 + 1
    assert made.peak(host=False) == first.device


def test_a_plan_counts_three_numbers_for_each_expert_of_a_token(qwen3_moe, tmp_path):
    extraction = {"sites": ["mlp_in", "expert_out"]}
    run = Run(tmp_path, config(qwen3_moe, ROWS, tmp_path / "data", extraction=extraction))
    run.prepare()
    made = planned(run)
    routed = 2
    assert made.groups[0].sites == 4 * 16 * (32 * 2 + 3 * routed * 4)
    assert made.values == 4 * 32 * (32 + 3 * routed)
    assert made.files == 4 * 4


def test_what_cannot_fit_says_what_would(run):
    made = planned(run)
    made.check(made.peak(host=False), host=False, where="the device")
    short = made.peak(host=False) - 1
    with pytest.raises(
        ValueError, match=r"and the device has .*; it fits with `extraction: \{"
    ) as e:
        made.check(short, host=False, where="the device")
    enough = int(str(e.value).split("layer_groups: ")[1].split("}")[0])
    fixed = made.peak(host=False) - max(group.weights for group in made.groups)

    def need(groups):
        return fixed + max(made.sizes.weights(range(*part)) for part in even_ranges(4, groups))

    assert need(enough) <= short < need(enough - 1)
    with pytest.raises(ValueError, match="not even one layer at a time fits"):
        made.check(fixed, host=False, where="the device")


def test_a_job_that_cannot_fit_stops_before_it_reads_a_weight(run, monkeypatch):
    monkeypatch.setattr(extraction_run, "load", lambda *_: pytest.fail("read weights"))
    monkeypatch.setattr(
        "outlier_atlas.extraction.plan.available", lambda _: (bytes_of("1MiB"), "this machine")
    )
    with pytest.raises(ValueError, match=r"layer_groups = 2: a job takes up to .* machine has 1.0"):
        run.extract()


def test_this_machine_says_what_it_has():
    size, name = available("cpu")
    assert name == "this machine"
    assert size is None or size > 2**20


@pytest.mark.parametrize(
    ("size", "text"), [(2**30, "1.0 GiB"), (61_300_000_000, "57.1 GiB"), (3 * 2**19, "1.5 MiB")]
)
def test_sizes_are_readable(size, text):
    assert shown(size) == text
    assert bytes_of("24GiB") == 24 * 2**30
