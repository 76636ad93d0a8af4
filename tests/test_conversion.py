"""Compiled loops that convert codes to weights: bit for bit what the formats define."""

from dataclasses import replace

import gguf as reference
import numpy as np
import pytest
import quantized
import tiny
import torch
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.conversion import dense, memory, work
from outlier_atlas.loading import assembly, partial
from outlier_atlas.loading.dequantize import dequantize_fp8, dequantize_mxfp4
from outlier_atlas.plan.group import COMPILER_BYTES, HEAP_BYTES, GroupPlan
from outlier_atlas.roles.architecture import describe

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CODES = torch.arange(256, dtype=torch.int32).to(torch.uint8)

SCALES = [
    1.0,
    0.0123,
    -3.7,
    0.0,
    127.99,
    128.0,
    1e30,
    1e-38,
    1e-44,
    65504 / 448,
    3e38,
    np.inf,
    np.nan,
]
"""Scales with normal, subnormal, too large and undefined products."""


def same(got, want):
    """Return whether two tensors have the same bits, apart from those of NaN."""
    nan = want.isnan()
    kind = torch.int16 if want.element_size() == 2 else torch.int32
    bits = [each.masked_fill(nan, 0).contiguous().view(kind) for each in (got, want)]
    return got.dtype == want.dtype and torch.equal(got.isnan(), nan) and torch.equal(*bits)


def spread(scales, block, shape):
    """Return the scale of each value."""
    wide = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide[: shape[0], : shape[1]]


# --- Codes of 8 bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz])
def test_every_code_times_every_kind_of_scale(stored, dtype):
    codes = CODES.repeat(len(SCALES), 1)
    scales = torch.tensor(SCALES)[:, None]
    got = dequantize_fp8(codes.view(stored), scales, (1, 256), dtype)
    assert same(got, (codes.view(stored).float() * scales).to(dtype))
    # Rows without NaN take another path.
    finite = codes[:, codes[0].view(stored).float().isfinite()].contiguous()
    got = dequantize_fp8(finite.view(stored), scales, (1, 256), dtype)
    assert same(got, (finite.view(stored).float() * scales).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "block"),
    [((300, 200), (128, 128)), ((129, 257), (128, 128)), ((1, 1), (128, 128)), ((7, 96), (1, 32)),
     ((5, 33), (1, 32)), ((3, 5), (2, 3)), ((40, 24), None)],
)  # fmt: skip
@pytest.mark.parametrize("powers", [False, True])
def test_blocks_that_are_cut_at_the_edges(shape, block, powers, dtype):
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
    height, width = block or shape
    grid = (-(-shape[0] // height), -(-shape[1] // width))
    scales = torch.rand(grid, generator=draw)
    if powers:
        scales = torch.randint(90, 140, grid, generator=draw, dtype=torch.uint8)
    factors = scales.view(torch.float8_e8m0fnu).float() if powers else scales
    values = torch.from_numpy(quantized.E4M3[codes.numpy()])
    want = (values * spread(factors, (height, width), shape)).to(dtype)
    if block is None:
        scales = scales.reshape(())
    assert same(dequantize_fp8(codes.view(torch.float8_e4m3fn), scales, block, dtype), want)


def test_a_large_weight_is_converted_in_pieces(monkeypatch):
    monkeypatch.setattr(dense, "PIECE", 1000)
    codes = torch.randint(256, (301, 200), dtype=torch.uint8).view(torch.float8_e4m3fn)
    scales = torch.rand(5, 4)
    got = dequantize_fp8(codes, scales, (64, 64), torch.bfloat16)
    want = codes.float() * spread(scales, (64, 64), (301, 200))
    assert same(got, want.to(torch.bfloat16))


# --- MXFP4 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 128, 300])
@pytest.mark.parametrize(("least", "stop"), [(0, 256), (114, 141), (118, 123), (2, 253)])
def test_every_pair_of_codes_times_every_power(least, stop, rows, dtype, monkeypatch):
    monkeypatch.setattr(dense, "PIECE", 2**13)
    random = np.random.default_rng(0)
    blocks = random.permuted(np.arange(2 * rows * 5 * 16) % 256).astype(np.uint8)
    blocks = torch.from_numpy(blocks.reshape(2, rows, 5, 16))
    scales = torch.from_numpy(random.integers(least, stop, (2, rows, 5), dtype=np.uint8))
    codes = np.stack([quantized.E2M1[blocks & 15], quantized.E2M1[blocks >> 4]], axis=-1)
    factors = scales.view(torch.float8_e8m0fnu).float()
    values = torch.from_numpy(codes.reshape(2, rows, 5, 32)) * factors[..., None]
    want = values.reshape(2, rows, 160).transpose(1, 2).to(dtype)
    assert same(dequantize_mxfp4(blocks, scales, dtype), want)


# --- GGUF ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", dense.GGUF)
def test_blocks_of_any_bytes_are_those_of_the_gguf_package(kind, dtype):
    number = reference.GGMLQuantizationType[kind]
    values, size = reference.GGML_QUANT_SIZES[number]
    random = np.random.default_rng(0)
    raw = random.integers(256, size=(41, 768 // values * size), dtype=np.uint8)
    rows = random.permutation(41)
    with np.errstate(all="ignore"):  # scales are any bits, so also NaN and infinite
        want = torch.from_numpy(np.array(reference.dequantize(raw, number)[rows])).to(dtype)
    got = torch.empty(41, 768, dtype=dtype)
    work.run(dense.gguf(kind, raw, rows, dtype, dense.bits_of(got)))
    assert same(got, want)


# --- Rounding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_rounded_as_torch_rounds_them(dtype):
    """A Q8_0 block of code 1 with scale x is x; products reach all exponents of float16."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    scales = torch.from_numpy((upper[:, None] | lower).view(np.float32))
    codes = torch.full((2**16, 9), 0x38, dtype=torch.uint8)  # 1.0
    got = dequantize_fp8(codes.view(torch.float8_e4m3fn), scales, (1, 1), dtype)
    assert same(got, scales.to(dtype))


# --- Threads and memory --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_jobs_run_once_and_errors_reach_the_caller(count):
    done = []
    with work.threads(count):
        work.run([lambda i=i: done.append(i) for i in range(50)])
        assert sorted(done) == list(range(50))

        def fail():
            raise KeyError("broken")

        with pytest.raises(KeyError, match="broken"):
            work.run([fail] * 4)
    work.run([lambda: done.append(-1)])
    assert done[-1] == -1


@pytest.mark.parametrize("size", [0, 3, 2**21, 2**22 + 1])
def test_memory_in_large_pages_is_that_of_an_ordinary_tensor(size):
    tensor = memory.empty((size,), torch.bfloat16)
    assert tensor.shape == (size,)
    assert tensor.fill_(1).sum(dtype=torch.float64) == size


# --- Experts -------------------------------------------------------------------------------------


def converter(*sources):
    operations = [MergeModulelist(dim=0), *([Concatenate(dim=1)] if len(sources) > 1 else [])]
    return WeightConverter([f"experts.*.{name}.weight" for name in sources], "fused", operations)


def test_experts_are_assembled_as_transformers_does(tmp_path):
    folder = tiny.qwen3_moe(tmp_path)
    config = load_config(folder)
    loaded = partial.load_layers(folder, config, describe(config), range(4), "bfloat16")
    whole = tiny.whole(folder, torch.bfloat16).model.state_dict()
    assert {name for name in whole if "experts" in name} <= {*loaded.state_dict()}
    for name, weight in loaded.state_dict().items():
        assert same(weight, whole[name]), name


@pytest.mark.parametrize("case", ["equal", "one has more rows", "one is missing", "of two dtypes"])
def test_experts_that_differ_are_left_to_transformers(case):
    gates = [torch.rand(4, 6).bfloat16() for _ in range(3)]
    ups = [torch.rand(5, 6).bfloat16() for _ in range(3)]
    if case == "one has more rows":
        ups[1] = torch.rand(6, 6).bfloat16()
    if case == "one is missing":
        ups.pop()
    if case == "of two dtypes":
        ups = [up.float() for up in ups]
    model = torch.nn.Module()
    model.fused = torch.nn.Parameter(torch.empty(3, 9, 6, dtype=torch.bfloat16))
    (changed,) = assembly.assembling([converter("gate", "up")])
    (operation,) = changed.operations
    tensors = dict(zip(changed.source_patterns, (gates, ups), strict=True))
    settings = {
        "source_patterns": changed.source_patterns, "target_patterns": changed.target_patterns,
        "full_layer_name": "fused", "model": model,
    }  # fmt: skip
    if case in ("one has more rows", "one is missing"):
        with pytest.raises(RuntimeError):
            operation.convert(tensors, **settings)
        return
    (fused,) = operation.convert(tensors, **settings).values()
    assert torch.equal(fused, torch.cat([torch.stack(gates), torch.stack(ups)], dim=1))


def test_other_conversions_stay_as_they_are():
    stack = converter("gate")
    other = WeightConverter(["a", "b"], "c", [Concatenate(dim=0)])
    deeper = WeightConverter("experts.*.w", "c", [MergeModulelist(dim=1)])
    changed = assembly.assembling([stack, other, deeper])
    assert changed[1:] == [other, deeper]
    assert [type(step) for step in changed[0].operations] == [assembly.Assemble]
    assert [type(step) for step in stack.operations] == [MergeModulelist]


@pytest.mark.parametrize("packed", [True, False])
def test_experts_are_neither_stacked_nor_concatenated_in_further_memory(
    packed, tmp_path, monkeypatch
):
    pair = quantized.fp8(tmp_path, quantized.QWEN3_MOE)
    folder = pair.packed if packed else pair.dense
    config = load_config(folder)

    def fail(*_, **__):
        raise AssertionError("a further copy of the experts of a layer")

    monkeypatch.setattr(MergeModulelist, "convert", fail)
    monkeypatch.setattr(Concatenate, "convert", fail)
    loaded = partial.load_layers(folder, config, describe(config), range(1, 2), "bfloat16")
    assert loaded.layers[1].mlp.experts.gate_up_proj.any()


# --- The plan ------------------------------------------------------------------------------------


def test_the_plan_counts_the_compiler_once():
    least = dict.fromkeys(
        ("file", "weights", "fullest", "fused", "forward", "losses", "entering", "sites",
         "boundary", "gathered", "written", "summarized"), 0,
    )  # fmt: skip
    plain = GroupPlan(layers=(0, 0), **least, quantized=False)
    for peak in ("host", "host_alone", "unified"):
        for summarized in (0, 1):
            # The loops of summaries are compiled after loading, in the same memory of numba.
            before = replace(plain, summarized=summarized)
            after = replace(before, quantized=True)
            more = 0 if summarized and peak != "host" else COMPILER_BYTES
            assert getattr(after, peak) - getattr(before, peak) <= COMPILER_BYTES
            assert getattr(after, peak) >= getattr(before, peak) + more - HEAP_BYTES
