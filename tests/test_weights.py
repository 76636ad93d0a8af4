"""Tests of weight statistics against float64 computations with only the files and numpy."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import quantized
import safetensors
import tiny
import torch
import transformers as t
from pipeline import Run, config
from safetensors.torch import load_file, save_file
from test_architectures import GPT2, LOCAL, OPT, SIZES
from test_report import Page, rendered

from outlier_atlas import tables
from outlier_atlas.checkpoint.source import fetch
from outlier_atlas.files import read_record
from outlier_atlas.loading.footprint import _Counter
from outlier_atlas.loading.weight_entries import down_projection_entries
from outlier_atlas.settings.model import ModelSettings
from outlier_atlas.statistics.weights import BLOCK, _Maxima, weight_statistics
from outlier_atlas.weights.measure import measure


def measured(model, folder, threads=2):
    """Return the tables of a model's weights, as lists of rows."""
    record = folder / "model.json"
    fetch(ModelSettings(source=str(model)), folder, record)
    measure(record, folder, False, folder / "weights", threads)
    names = ("weights", "weight_errors", "weight_channels")
    return [pq.read_table(folder / "weights" / f"{name}.parquet").to_pylist() for name in names]


# What is in a layer of each: a pattern of names, the site that it is multiplied with, and whether
# the file has it (in, out).
LLAMA = [
    (r"self_attn\.[qkv]_proj", "attn_in", False),
    (r"self_attn\.o_proj", "attn_hidden", False),
    (r"mlp\.(gate|up)_proj", "mlp_in", False),
    (r"mlp\.down_proj", "mlp_hidden", False),
]
ATTENTION = LLAMA[:2]
EXPERTS = [
    (r"mlp\.(gate|router)\.weight", "mlp_in", False),
    (r"mlp\.experts\.\d+\.(gate|up)_proj", "mlp_in", False),
    (r"mlp\.experts\.\d+\.down_proj", None, False),
    (r"experts\.gate_up_proj$", "mlp_in", True),
    (r"experts\.down_proj$", None, True),
]
CASES = [
    (t.LlamaConfig(**SIZES), LLAMA),
    (t.GPT2Config(**GPT2), [
        (r"attn\.c_attn", "attn_in", True), (r"attn\.c_proj", "attn_hidden", True),
        (r"mlp\.c_fc", "mlp_in", True), (r"mlp\.c_proj", "mlp_hidden", True),
    ]),
    (t.Phi3Config(**SIZES), [(r"qkv_proj", "attn_in", False), (r"gate_up_proj", "mlp_in", False),
                             *LLAMA]),
    (t.OPTConfig(**OPT), [(r"out_proj", "attn_hidden", False), *LLAMA, (r"fc1", "mlp_in", False),
                          (r"fc2", "mlp_hidden", False)]),
    (t.Gemma2Config(**SIZES, head_dim=8, sliding_window=4), LLAMA),
    (t.GptOssConfig(**SIZES, **LOCAL, head_dim=8, sliding_window=4), [*ATTENTION, *EXPERTS]),
]  # fmt: skip


def name(value):
    return getattr(value, "model_type", "")


def stored(model):
    """Return every tensor of a checkpoint in float32."""
    found = {}
    for path in sorted(model.glob("*.safetensors")):
        found |= {key: value.float().numpy() for key, value in load_file(path).items()}
    return found


def expected(weights, cases):
    """Return (matrix out x in, site) by (weight, expert), for all matrices of the layers."""
    found = {}
    for key, value in weights.items():
        if not re.search(r"\.\d+\.", key) or value.ndim < 2 or key.endswith("bias"):
            continue
        site, turned = next((s, r) for pattern, s, r in cases if re.search(pattern, key))
        weight = value.swapaxes(-1, -2) if turned else value
        expert = re.search(r"experts\.(\d+)\.", key)
        if weight.ndim == 3:
            found |= {(key, e): (matrix, site) for e, matrix in enumerate(weight)}
        else:
            found[key, int(expert[1]) if expert else None] = weight, site
    return found


def assert_is(row, matrix, site):
    """Check a row of `weights` against a matrix."""
    assert row["site"] == site
    assert (row["rows"], row["columns"]) == matrix.shape
    place = np.unravel_index(np.abs(matrix).argmax(), matrix.shape)
    assert (row["row"], row["column"]) == place
    assert row["value"] == matrix[place]
    exact = matrix.astype(float)
    centered = exact - exact.mean()
    # Sums of some thousand float64 numbers in another order.
    close = {"rel": 1e-9, "abs": 1e-12}
    assert row["mean"] == pytest.approx(exact.mean(), **close)
    assert row["kurtosis"] == pytest.approx((centered**4).mean() / exact.var() ** 2, **close)


@pytest.mark.parametrize(("architecture", "cases"), CASES, ids=name)
def test_every_matrix_of_a_checkpoint(architecture, cases, tmp_path):
    model = tiny.checkpoint(tmp_path / "model", architecture)
    rows, _, channels = measured(model, tmp_path)
    want = expected(stored(model), cases)
    in_layers = {(r["weight"], r["expert"]): r for r in rows if r["layer"] is not None}
    assert in_layers.keys() == want.keys()
    for key, (matrix, site) in want.items():
        assert in_layers[key]["layer"] == int(re.search(r"\.(\d+)\.", key[0])[1])
        assert_is(in_layers[key], matrix, site)
    for row in channels:
        if (row["weight"], row["expert"]) in want:
            matrix, _ = want[row["weight"], row["expert"]]
            assert np.array_equal(np.abs(row["input_maxima"]), np.abs(matrix).max(0))
            assert np.array_equal(np.abs(row["output_maxima"]), np.abs(matrix).max(1))
            assert np.isin(row["input_maxima"], matrix).all(), "they have their signs"


def test_separate_experts_in_several_files(tmp_path):
    model = tiny.qwen3_moe(tmp_path / "model")
    assert len(list(model.glob("*.safetensors"))) > 2
    rows, _, _ = measured(model, tmp_path)
    want = expected(stored(model), [*EXPERTS, *LLAMA])
    assert sum(row["expert"] is not None for row in rows) == 4 * 8 * 3
    found = {(r["weight"], r["expert"]): r for r in rows if r["layer"] is not None}
    assert found.keys() == want.keys()
    for key, (matrix, site) in want.items():
        assert_is(found[key], matrix, site)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stored_twice", [False, True])
def test_embedding_and_head(tied, stored_twice, tmp_path):
    model = tiny.llama(tmp_path / "model", tie_word_embeddings=tied)
    if stored_twice and tied:
        weights = load_file(model / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        tiny.save_weights(model, weights)
    rows, _, _ = measured(model, tmp_path)
    kinds = [row["kind"] for row in rows if row["layer"] is None]
    assert sorted(kinds) == (["embedding"] if tied else ["embedding", "lm_head"])


@pytest.mark.parametrize("kind", quantized.KINDS)
def test_quantized_weights_are_what_they_stand_for(kind, tmp_path):
    pair = quantized.KINDS[kind](tmp_path)
    packed, dense = (measured(m, tmp_path / m.name) for m in (pair.packed, pair.dense))
    for got, want in zip(packed, dense, strict=True):
        assert len(got) > 20
        for row in (*got, *want):
            row.pop("dtype", None)
        assert got == want


def nearest(values, table):
    """Return the nearest numbers of a table: the even index at ties, the last number beyond it."""
    table = np.array(table)
    sizes = np.minimum(np.abs(values.astype(float)), table[-1])
    above = np.clip(np.searchsorted(table, sizes), 1, len(table) - 1)
    below = above - 1
    up, down = table[above] - sizes, sizes - table[below]
    index = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return np.copysign(table[index], values).astype(np.float32)


POSITIVE = [float(value) for value in quantized.E4M3[:127]]
INTEGERS = list(range(128))
FOUR_BITS = [float(value) for value in quantized.E2M1[:8]]


def by_block(matrix, size, quantize):
    """Quantize rows in blocks, padded with zeros and cut again, with (row, block, 1) scales."""
    rows, columns = matrix.shape
    padded = np.pad(matrix, ((0, 0), (0, -columns % size))).reshape(rows, -1, size)
    scales = quantize(np.abs(padded).max(-1, keepdims=True))
    return scales, padded, lambda made: made.reshape(rows, -1)[:, :columns]


def returned(matrix, form, granularity):
    """Return the dequantized matrix."""
    largest = np.abs(matrix).max()
    if granularity in ("tensor", "output channel"):
        top = largest if granularity == "tensor" else np.abs(matrix).max(1, keepdims=True)
        table = {"int8": INTEGERS, "fp8_e4m3": POSITIVE}[form]
        scale = top / np.float32(table[-1])
        with np.errstate(invalid="ignore"):  # 0 / 0, whose scale is 0
            return nearest(matrix / scale, table) * scale
    if form == "nvfp4":
        whole = largest / np.float32(6 * 448)
        scales, blocks, cut = by_block(
            matrix, 16, lambda top: nearest(top / np.float32(6) / whole, POSITIVE) * whole
        )
        return cut(nearest(blocks / scales, FOUR_BITS) * scales)
    table, emax = {"mxfp8": (POSITIVE, 8), "mxfp4": (FOUR_BITS, 2)}[form]
    scales, blocks, cut = by_block(
        matrix, 32, lambda top: np.exp2(np.floor(np.log2(top)) - emax).astype(np.float32)
    )
    return cut(nearest(blocks / scales, table) * scales)


def test_errors_of_every_format(tmp_path):
    """GPT-2's matrices are transposed, and rows of Gemma-2 have an odd number of blocks."""
    for architecture in (
        t.GPT2Config(**GPT2 | {"n_embd": 48}),
        t.Gemma2Config(**SIZES | {"hidden_size": 40}, head_dim=8, sliding_window=4),
    ):
        folder = tmp_path / architecture.model_type
        model = tiny.checkpoint(folder / "model", architecture)
        _, errors, _ = measured(model, folder)
        turned = architecture.model_type == "gpt2"
        cases = CASES[1][1] if turned else LLAMA
        want = expected(stored(model), cases)
        formats = Counter((row["format"], row["granularity"]) for row in errors)
        assert len(formats) == 7
        for row in errors:
            if row["layer"] is None:
                continue
            matrix, _ = want[row["weight"], row["expert"]]
            error = returned(matrix, row["format"], row["granularity"]).astype(float) - matrix
            signal = (matrix.astype(float) ** 2).sum()
            # Sums in another order, as above.
            assert row["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-9)
            assert row["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-9)
            sqnr = 10 * np.log10(signal / (error**2).sum())
            assert row["sqnr"] == pytest.approx(sqnr, rel=1e-9)


def test_what_is_not_finite_is_counted_and_left_out(tmp_path):
    model = tiny.llama(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    key = "model.layers.2.mlp.up_proj.weight"
    weights[key][3, 5], weights[key][0, 0], weights[key][1] = np.inf, -np.inf, np.nan
    weights["model.layers.1.mlp.up_proj.weight"].fill_(np.nan)
    tiny.save_weights(model, weights)
    rows, errors, channels = measured(model, tmp_path)
    row, nothing = (
        next(r for r in rows if r["weight"] == f"model.layers.{layer}.mlp.up_proj.weight")
        for layer in (2, 1)
    )
    matrix = weights[key].float().numpy()
    finite = matrix[np.isfinite(matrix)].astype(float)
    assert row["not_finite"] == 2 + 32 == matrix.size - finite.size
    assert abs(row["value"]) == np.abs(finite).max()
    # Sums in another order, as above.
    assert row["mean"] == pytest.approx(finite.mean(), rel=1e-9)
    kurtosis = ((finite - finite.mean()) ** 4).mean() / finite.var() ** 2
    assert row["kurtosis"] == pytest.approx(kurtosis, rel=1e-9)
    assert nothing["not_finite"] == matrix.size
    assert np.isnan([nothing["value"], nothing["kurtosis"], nothing["mean"]]).all()
    error = next(r for r in errors if r["weight"] == key and r["format"] == "int8")
    filled = np.where(np.isfinite(matrix), matrix, np.float32(0))
    lost = returned(filled, "int8", error["granularity"]).astype(float) - filled
    assert error["rmse"] == pytest.approx(np.sqrt((lost**2).sum() / finite.size), rel=1e-9)
    maxima = next(r for r in channels if r["weight"] == key)
    assert np.array_equal(np.abs(maxima["input_maxima"]), np.abs(filled).max(0))


def test_one_value_and_one_row_and_zeros():
    for matrix in (np.zeros((3, 5)), np.full((1, 1), -2.5), np.full((4, 33), 0.1)):
        values = torch.from_numpy(matrix.astype(np.float32))
        got = weight_statistics(*matrix.shape, lambda a, b, v=values: v[a:b].clone())
        assert got.value == values[0, 0]
        assert (got.row, got.column) == (0, 0)
        assert np.isnan(got.kurtosis)
        assert got.errors["int8", "tensor"].rmse == pytest.approx(0, abs=1e-8)


def test_the_first_of_equals_is_the_largest():
    values = torch.tensor([[1.0, -2.0], [2.0, -2.0], [2.0, 0.0]])
    got = weight_statistics(3, 2, lambda a, b: values[a:b].clone())
    assert (got.value, got.row, got.column) == (-2.0, 0, 1)
    assert got.input_maxima.tolist() == [2.0, -2.0]
    assert got.output_maxima.tolist() == [-2.0, 2.0, 2.0], "the positive one of equals"


def test_any_number_of_threads_gives_the_same_files(tmp_path):
    model = tiny.qwen3_moe(tmp_path / "model")
    for threads in (1, 3):
        measured(model, tmp_path / str(threads), threads)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / n / "weights").iterdir()}
        for n in "13"
    )
    assert first == second
    assert len(first) == 5


class Counting:
    """A `safe_open` that counts the tensors that are read."""

    asked: Counter = Counter()

    def __init__(self, *args, **kwargs):
        self._file = OPEN(*args, **kwargs)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def keys(self):
        return self._file.keys()

    def get_tensor(self, key):
        self.asked[key] += 1
        return self._file.get_tensor(key)


OPEN = safetensors.safe_open


def test_each_tensor_is_read_once_and_nothing_that_is_not_the_decoders(tmp_path, monkeypatch):
    pair = quantized.fp8(tmp_path, quantized.LLAVA)
    monkeypatch.setattr(safetensors, "safe_open", Counting)
    monkeypatch.setattr(Counting, "asked", Counter())
    rows, _, _ = measured(pair.packed, tmp_path)
    assert set(Counting.asked.values()) == {1}
    assert {row["weight"] for row in rows} == {
        key for key in Counting.asked if not key.endswith("_scale_inv")
    }
    assert not [key for key in Counting.asked if "vision" in key]
    assert len(rows) == 4 * 7 + 2


def test_memory_is_some_rows_however_large_a_matrix_is():
    stored_rows = torch.randn(8192, 1024).bfloat16()
    with _Counter() as counter:
        weight_statistics(8192, 1024, lambda start, stop: stored_rows[start:stop].float())
    assert counter.peak < 16 * 4 * BLOCK < stored_rows.numel() * 4


def anonymous():
    """Return the private memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 2**10


def test_a_tensor_is_not_copied_when_rows_of_it_are_taken(tmp_path):
    model = tiny.llama(tmp_path / "model", vocab_size=2**20)  # 64 MiB, twice
    from outlier_atlas.checkpoint.source import load_config
    from outlier_atlas.loading.matrices import Checkpoint
    from outlier_atlas.roles.architecture import describe
    from outlier_atlas.roles.decoder_weights import stored_weights

    read = load_config(model)
    files = ["model.safetensors"]
    weights = stored_weights(model, files, read, describe(read))
    before = anonymous()
    with Checkpoint(model, files, read) as checkpoint:
        for weight in weights:
            for matrix in checkpoint.matrices(weight):
                matrix.take(0, 4)
    assert anonymous() - before < 16 * 2**20


def test_memory_of_a_thread_is_some_rows_too():
    """Small results between the parts must not fragment the memory."""
    rows = torch.zeros(2**17, 1024, dtype=torch.bfloat16)
    with ThreadPoolExecutor(1) as pool:
        before = anonymous()
        maxima = pool.submit(_Maxima.of, *rows.shape, lambda start, stop: rows[start:stop].float())
        maxima.result()
        assert anonymous() - before < 64 * 2**20 < rows.numel() * 4


SITES = ["attn_in", "attn_hidden", "mlp_in", "mlp_hidden"]
ROWS = [[5, 17, 200, 9, 33], [40, 6, 6, 90]]


def measured_run(run):
    run.prepare()
    run.extract()
    run.measure_weights()
    run.detect()


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_smoothquant_scales(alpha, tmp_path):
    model = tiny.llama(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.gate_proj.weight"][:, 7] = 0
    weights["model.layers.1.mlp.up_proj.weight"][:, 7] = 0
    alphas = {"detection": {"smoothquant": {"alpha": alpha}}}
    tiny.save_weights(model, weights)
    run = Run(tmp_path, config(model, ROWS, tmp_path, extraction={"sites": SITES}, **alphas))
    measured_run(run)
    rows = run.table("smoothquant_scales")
    names = {"attn_in": ["q_proj", "k_proj", "v_proj"], "attn_hidden": ["o_proj"],
             "mlp_in": ["gate_proj", "up_proj"], "mlp_hidden": ["down_proj"]}  # fmt: skip
    assert len(rows) == 4 * (32 + 32 + 32 + 64)
    for row in rows:
        site, layer, channel = row["site"], row["layer"], row["channel"]
        x = np.abs(run.array(site)[layer, :, channel]).max()
        matrices = [
            value.float().numpy() for key, value in weights.items()
            if f".{layer}." in key and any(part in key for part in names[site])
        ]  # fmt: skip
        w = max(np.abs(matrix[:, channel]).max() for matrix in matrices)
        assert (row["activation_max"], row["weight_max"]) == (x, w)
        if (site, layer, channel) == ("mlp_in", 1, 7):
            assert w == 0
            assert row["scale"] is None
        else:
            # Two powers and a quotient in float64.
            assert row["scale"] == pytest.approx(float(x) ** alpha / float(w) ** (1 - alpha), 1e-12)


def test_smoothquant_takes_all_experts_and_the_router(tmp_path):
    model = tiny.qwen3_moe(tmp_path / "model")
    run = Run(tmp_path, config(model, ROWS, tmp_path, extraction={"sites": ["mlp_in"]}))
    measured_run(run)
    weights = stored(model)
    for row in run.table("smoothquant_scales"):
        pattern = rf"layers\.{row['layer']}\.mlp\.(gate\.|experts\.\d+\.(gate|up)_proj)"
        readers = [value for key, value in weights.items() if re.search(pattern, key)]
        assert len(readers) == 17
        assert row["weight_max"] == max(np.abs(w[:, row["channel"]]).max() for w in readers)


def test_where_weights_are_not_measured_tables_are_empty(tmp_path):
    run = Run(tmp_path, config(tiny.llama(tmp_path / "model"), ROWS, tmp_path))
    run.all()
    for table in tables.WEIGHT_TABLES:
        assert run.table(table.name) == []


@pytest.mark.parametrize("kind", ["llama, FP8", "llama, MXFP8", "gpt2", "qwen3_moe"])
def test_single_weights_of_down_projections(kind, tmp_path):
    if kind in quantized.KINDS:
        pair = quantized.KINDS[kind](tmp_path)
        model, values = pair.packed, stored(pair.dense)
    else:
        architectures = {"gpt2": t.GPT2Config(**GPT2), "qwen3_moe": t.Qwen3MoeConfig(**SIZES)}
        model = tiny.checkpoint(tmp_path / "model", architectures[kind])
        values = stored(model)
    record = tmp_path / "model.json"
    fetch(ModelSettings(source=str(model)), tmp_path, record)
    places = [(2, None, 31, 17), (0, None, 0, 63), (3, None, 5, 5)]
    got = down_projection_entries(read_record(record), tmp_path, False, places)
    if kind == "qwen3_moe":
        assert got == [None] * 3
        return
    for (layer, _, row, column), value in zip(places, got, strict=True):
        key = f"model.layers.{layer}.mlp.down_proj.weight"
        matrix = values.get(key)
        if matrix is None:
            matrix = values[f"transformer.h.{layer}.mlp.c_proj.weight"].T
        assert value == matrix[row, column]


def test_codes_that_lack_scales_are_refused(tmp_path):
    pair = quantized.fp8(tmp_path, t.LlamaConfig(**quantized.BIG))
    weights = load_file(pair.packed / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight_scale_inv"]
    save_file(weights, pair.packed / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight is quantized in a way"):
        measured(pair.packed, tmp_path)
    assert not list((tmp_path / "weights").iterdir()), "all of it is there, or nothing"


def test_the_report_names_the_largest_weights_and_what_formats_cost(tmp_path):
    model = tiny.llama(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][11, 3] = -77.5
    tiny.save_weights(model, weights)
    run = Run(tmp_path, config(model, ROWS, tmp_path))
    measured_run(run)
    page = rendered(run)[0].replace("<wbr>", "")
    name = "model.layers.2.mlp.down_proj.weight"
    assert re.search(rf"<td>2</td><td[^>]*><code>{name}</code></td><td>-77.5</td><td>11</td>", page)
    after = page.partition('>int8</td><td class="left">tensor</td>')[2]
    shown = re.search(r"<td>([\d.]+)</td><td[^>]*><code>([^<]*)</code></td></tr>", after)
    error = max(
        (row for row in run.table("weight_errors") if row["format"] == "int8"),
        key=lambda row: row["rmse"],
    )
    assert (error["weight"], error["granularity"]) == (name, "tensor")
    assert shown.groups() == (f"{error['rmse']:.4g}", name)


def test_the_report_says_where_weights_were_not_measured_and_escapes_their_names(tmp_path):
    model = tiny.llama(tmp_path / "model")
    run = Run(tmp_path, config(model, ROWS, tmp_path, weights={"measure": False}))
    run.all()
    assert "weights.measure" in Page(rendered(run)[0]).said
    run = Run(tmp_path, config(model, ROWS, tmp_path, run={"name": "hostile"}))
    measured_run(run)
    for table in (tables.WEIGHTS, tables.WEIGHT_ERRORS):
        columns = tables.read(run.tables, table).to_pydict()
        columns["weight"] = ["<script>\x1b" for _ in columns["weight"]]
        tables.write(run.tables, table, columns)
    page = rendered(run)[0]
    assert "&lt;script&gt;" in page
    assert "<script" not in page and "\x1b" not in page
