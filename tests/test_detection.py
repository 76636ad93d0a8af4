"""Detection, from a model with planted outliers to the tables."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import zarr
from pipeline import Run, config

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"

EMBEDDING = "model.embed_tokens.weight"


def norm(layer, which):
    name = {"attn_in": "input_layernorm", "mlp_in": "post_attention_layernorm"}[which]
    return f"model.layers.{layer}.{name}.weight"


def dumb_median(values):
    ordered = np.sort(np.abs(values), axis=None)
    return float(ordered[(len(ordered) - 1) // 2])


# --- LLM.int8() outlier features -----------------------------------------------------------------

# Channel: its tokens, whose embedding alone is not 0 there, and the tensors in which it is scaled.
PLANTED = {
    5: {"token": 10, "tensors": [("attn_in", 0), ("attn_in", 1)]},  # 2 of 8 layers
    11: {"token": 10, "tensors": [("attn_in", 3)]},  # 1 of 8: too few
    20: {"token": 12, "tensors": [("mlp_in", layer) for layer in range(2, 8)]},  # too rare
    25: {"token": 14, "tensors": [("attn_in", 0), ("mlp_in", 0), ("mlp_in", 1)]},  # 3 of 16 tensors
}
ROWS = [[10] * 8 + [11] * 24, [12] * 3 + [14] * 4 + [11] * 25]  # 64 positions


@pytest.fixture(scope="module")
def planted_features(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    model, weights = tiny.silent(folder / "model")
    for channel, plant in PLANTED.items():
        weights[EMBEDDING][:, channel] = 0
        weights[EMBEDDING][plant["token"], channel] = -1 if channel == 25 else 1
        for site, layer in plant["tensors"]:
            weights[norm(layer, site)][channel] = 8
    tiny.save_weights(model, weights)
    run = Run(folder, config(model, ROWS, folder / "data"))
    run.all()
    return run


def test_the_table_names_exactly_the_planted_features(planted_features):
    rows = {row["channel"]: row for row in planted_features.table("llm_int8_features")}
    assert set(rows) == set(PLANTED)
    assert [channel for channel, row in rows.items() if row["outlier_feature"]] == [5, 25]
    assert next(iter(rows)) in (5, 25), "outlier features first"
    for channel, plant in PLANTED.items():
        row = rows[channel]
        positions = sum(r.count(plant["token"]) for r in ROWS)
        layers = {layer for _, layer in plant["tensors"]}
        assert (row["layers"], row["tensors"]) == (len(layers), len(plant["tensors"]))
        assert row["layer_share_layers"] == len(layers) / 8
        assert row["layer_share_tensors"] == len(plant["tensors"]) / 16
        for share in ("union", "mean", "max"):
            assert row[f"position_share_{share}"] == positions / 64
        assert row["outlier_values"] == positions * len(plant["tensors"])
        assert row["sidedness"] == "one-sided"
        assert row["positive_share"] == (0 if channel == 25 else 1)
        stored = planted_features.array(plant["tensors"][0][0])[plant["tensors"][0][1], :, channel]
        assert row["value"] == stored[np.abs(stored).argmax()]
        assert row["quartile1"] == row["median"] == row["quartile3"] == row["value"]


def test_every_reading_of_the_shares_is_in_the_table(planted_features):
    rows = planted_features.table("llm_int8_variants")
    found = {(r["layer_share_over"], r["position_share_by"]): r["channels"] for r in rows}
    assert found == {
        ("layers", "union"): "5 25", ("layers", "mean"): "5 25", ("layers", "max"): "5 25",
        ("tensors", "union"): "", ("tensors", "mean"): "", ("tensors", "max"): "",
    }  # fmt: skip
    assert [r["position_share_by"] for r in rows if r["configured"]] == ["union"]
    (int8,) = [r for r in planted_features.table("criteria") if r["criterion"] == "llm_int8"]
    assert (int8["measured"], int8["findings"]) == (True, 2)


@pytest.mark.parametrize(
    ("settings", "channels"),
    [
        ({"layer_share": 0.125}, [5, 11, 25]),
        ({"layer_share": 0.1251}, [5, 25]),
        ({"position_share": 3 / 64}, [5, 20, 25]),
        ({"layer_share_over": "tensors", "layer_share": 3 / 16}, [25]),
        ({"position_share": 4 / 64 + 1e-9}, [5]),
        ({"sites": ["mlp_in"], "position_share": 0.01}, [20, 25]),
        ({"threshold": 9.0}, []),
    ],
)
def test_thresholds_and_sites_decide(planted_features, tmp_path, settings, channels):
    run = planted_features
    again = Run(tmp_path, {**run.settings.model_dump(), "detection": {"llm_int8": settings}})
    again.folder, again.store_record, again.tokens = run.folder, run.store_record, run.tokens
    again.model_record = run.model_record
    again.detect()
    rows = again.table("llm_int8_features")
    assert sorted(row["channel"] for row in rows if row["outlier_feature"]) == channels


# --- Massive activations -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted_massive(tmp_path_factory):
    """In layer 2 the MLP writes a huge value into channel 7 where token 9 stands."""
    folder = tmp_path_factory.mktemp("massive")
    model, weights = tiny.silent(folder / "model", layers=5)
    weights[EMBEDDING][:, 3] = 0
    weights[EMBEDDING][9, 3] = 1
    mlp = "model.layers.2.mlp"
    for name in ("gate_proj", "up_proj"):
        weights[f"{mlp}.{name}.weight"][0] = 0
        weights[f"{mlp}.{name}.weight"][0, 3] = 16
    weights[f"{mlp}.down_proj.weight"][7, 0] = -16  # about -16 x 16 x 16 = -4,096
    tiny.save_weights(model, weights)
    rows = [[9] + [11] * 15, [11] * 16, [11, 11, 9, 11, 9] + [11] * 11]
    run = Run(folder, config(model, rows, folder / "data", extraction={"layer_groups": 2}))
    run.all()
    return run


def test_the_table_names_exactly_the_planted_massive_activations(planted_massive):
    rows = planted_massive.table("massive_activations")
    places = [(r["layer"], r["sequence"], r["position"], r["channel"]) for r in rows]
    assert places == [(la, s, p, 7) for la in (2, 3, 4) for s, p in ((0, 0), (2, 2), (2, 4))]
    stored = planted_massive.array("resid_post")
    for row in rows:
        layer, token = row["layer"], row["token_index"]
        assert token == row["sequence"] * 16 + row["position"]
        assert row["token_id"] == 9
        assert row["value"] == stored[layer, token, 7] < -1000
        first = row["sequence"] * 16
        assert row["tensor_median"] == dumb_median(stored[layer, first : first + 16])
        assert row["token_median"] == dumb_median(stored[layer, token])
        assert row["tensor_median_ratio"] == abs(row["value"]) / row["tensor_median"]


def test_massive_channels_are_counted_by_layer(planted_massive):
    rows = planted_massive.table("massive_channels")
    assert [(r["layer"], r["channel"], r["massive_activations"]) for r in rows] == [
        (2, 7, 3), (3, 7, 3), (4, 7, 3),
    ]  # fmt: skip
    assert [r["sequences"] for r in rows] == [2] * 3
    assert [r["first_position_share"] for r in rows] == [1 / 3] * 3


def test_extremes_are_those_of_the_store(planted_massive):
    for row in planted_massive.table("layer_magnitudes"):
        stored = np.abs(planted_massive.array(row["site"])[row["layer"]])
        ordered = np.sort(stored, axis=None)[::-1]
        assert [row["top1"], row["top2"], row["top3"]] == ordered[:3].tolist()
        assert row["median"] == dumb_median(stored)
        assert stored[row["token_index"], row["channel"]] == row["top1"]
        assert (row["values"], row["nan"], row["infinite"]) == (stored.size, 0, 0)
    for row in planted_massive.table("channel_maxima"):
        stored = planted_massive.array(row["site"])[row["layer"], :, row["channel"]]
        assert row["value"] == stored[np.abs(stored).argmax()]
        assert row["token_index"] == np.abs(stored).argmax()


# --- What cannot be counted ----------------------------------------------------------------------


def test_a_criterion_without_its_sites_is_not_measured_and_not_zero(llama, tmp_path):
    extraction = {"sites": ["attn_in"]}
    run = Run(tmp_path, config(llama, [[5, 6, 7]], tmp_path / "data", extraction=extraction))
    run.all()
    rows = {row["criterion"]: row for row in run.table("criteria")}
    assert rows["llm_int8"]["measured"] is False
    assert rows["llm_int8"]["missing_sites"] == "mlp_in"
    assert rows["llm_int8"]["findings"] is None
    assert rows["massive_activations"]["findings"] is None
    assert run.table("llm_int8_variants") == run.table("massive_channels") == []
    assert len(run.table("layer_magnitudes")) == 4


@pytest.mark.parametrize(
    ("weight", "channel", "value", "kind"),
    [
        ("model.layers.1.post_attention_layernorm.weight", 4, float("inf"), "infinite"),
        (EMBEDDING, 2, float("nan"), "nan"),
    ],
)
def test_nan_and_infinity_are_counted_and_left_out(tmp_path, weight, channel, value, kind):
    model, weights = tiny.silent(tmp_path / "model", layers=2)
    weights[weight][..., channel] = value
    tiny.save_weights(model, weights)
    run = Run(tmp_path, config(model, [[11, 12, 9, 13]], tmp_path / "data"))
    run.all()
    rows = run.table("layer_magnitudes")
    for row in rows:
        stored = run.array(row["site"])[row["layer"]]
        finite = stored[np.isfinite(stored)]
        assert row["nan"] == np.isnan(stored).sum()
        assert row["infinite"] == np.isinf(stored).sum()
        assert row["top1"] == (np.abs(finite).max() if finite.size else None)
        assert row["median"] == (dumb_median(finite) if finite.size else None)
    assert sum(row[kind] for row in rows) > 0


def test_sites_of_unlike_width_do_not_fit_one_criterion(llama, tmp_path):
    sites = ["attn_in", "mlp_hidden"]
    data = config(
        llama, [[5, 6]], tmp_path / "data",
        extraction={"sites": sites}, detection={"llm_int8": {"sites": sites}},
    )  # fmt: skip
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    with pytest.raises(ValueError, match="attn_in has 32, mlp_hidden has 64"):
        run.detect()


def test_equal_stores_give_equal_tables(planted_massive):
    before = {path.name: path.read_bytes() for path in planted_massive.tables.iterdir()}
    planted_massive.detect()
    assert {path.name: path.read_bytes() for path in planted_massive.tables.iterdir()} == before


def test_columns_carry_their_definitions(planted_massive):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in planted_massive.tables.glob("*.parquet"):
        schema = pq.read_schema(path)
        assert schema.metadata[b"about"]
        assert all(field.metadata[b"definition"] for field in schema)
        counted = [field for field in schema if field.type not in (pa.string(), pa.bool_())]
        assert all(field.metadata[b"unit"] for field in counted), path.stem
        header = path.with_suffix(".csv").read_text().splitlines()[0]
        assert header == ",".join(f'"{name}"' for name in schema.names)


def test_a_store_that_went_away_is_said(llama, tmp_path):
    run = Run(tmp_path, config(llama, [[5, 6]], tmp_path / "data"))
    run.prepare()
    run.extract()
    group = zarr.open_group(run.activations, mode="a")
    del group["mlp_in"]
    with pytest.raises(ValueError, match=r"mlp_in/zarr\.json: damaged .its file is missing"):
        run.detect()
    run.create_store()
    with pytest.raises(ValueError, match="mlp_in, layer 0, tokens 0 to 1 were never computed"):
        run.detect()
    run.extract()
    run.detect()


def test_a_deleted_chunk_is_missed_and_made_anew(llama, tmp_path):
    run = Run(tmp_path, config(llama, [[5, 6], [7, 8]], tmp_path / "data"))
    run.all()
    want, tables = run.array("mlp_in"), run.table("layer_magnitudes")
    (run.activations / "mlp_in" / "c" / "2" / "0" / "0").unlink()
    shutil.rmtree(run.folder / "summaries")  # nothing is read where they are there
    with pytest.raises(ValueError, match=r"mlp_in, layer 2, chunk 0: damaged .*missing.* run"):
        run.detect()
    assert not run.job(0, 0).manifest.exists()
    run.extract()
    run.detect()
    assert np.array_equal(run.array("mlp_in"), want)
    assert run.table("layer_magnitudes") == tables


def test_a_criterion_of_the_ratio_alone_stays_small(planted_massive, tmp_path):
    """Any value may prove massive then."""
    run = planted_massive
    settings = {"massive_activations": {"absolute": 1e-9, "ratio": 1000.0}}
    again = Run(tmp_path, {**run.settings.model_dump(), "detection": settings})
    again.folder, again.store_record, again.tokens = run.folder, run.store_record, run.tokens
    again.model_record = run.model_record
    again.detect()
    assert again.table("massive_activations") == run.table("massive_activations")


def test_detection_needs_neither_torch_nor_transformers(tmp_path):
    """Both take seconds to import, and no criterion needs them to read a store."""
    model = tiny.llama(tmp_path / "model")
    run = Run(tmp_path, config(model, [[5, 6, 7], [8, 9, 10]], tmp_path / "data"))
    run.prepare()
    run.extract()
    detection = run.settings.detection.model_dump(mode="json")
    detection["quantization_error"]["sites"] = ["attn_in"]
    code = f"""
import sys; sys.path.insert(0, {str(SCRIPTS)!r})
from pathlib import Path
from outlier_atlas.checkpoint.source import offline
from outlier_atlas.detection.run import detect
from outlier_atlas.store.run import Run
run = Run(*map(Path, {[str(p) for p in (run.folder, run.model_record, run.resources, run.tokens)]}))
offline()
detect({detection}, run, run.tables, 2, sorted(run.job_manifests.glob("*.json")), False)
print({{"torch", "transformers"}} & {{*sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr
    assert run.table("quantization_error")
