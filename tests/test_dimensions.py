"""The store as other readers of Zarr see it: xarray, dask, and zarr itself."""

import json
import re
import textwrap
import warnings

import dask.array
import numpy as np
import pytest
import tiny
import transformers
import xarray
import zarr
from pipeline import Run, config
from test_workflow import ROOT

from outlier_atlas.files import read_record, write_record, write_whole
from outlier_atlas.settings.sites import DIMENSIONS, SITE_NAMES, SITES
from outlier_atlas.store import dimensions
from outlier_atlas.store.dimensions import own_names
from outlier_atlas.store.layout import parts
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.store.version import refuse_newer

ROWS = [[0, *range(5, 20)], [1, 2, 3, 0, 7], list(range(30))]

HEADS = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "vocab_size": 320}
DEEPSEEK = tiny.SIZES | {
    "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 8, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 0,
}  # fmt: skip
MODELS = {
    "llama": transformers.LlamaConfig(**tiny.SIZES, head_dim=6),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **tiny.SIZES, head_dim=8, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "gemma2": transformers.Gemma2Config(**tiny.SIZES, head_dim=12),
    "gpt2": transformers.GPT2Config(**HEADS, bos_token_id=0, eos_token_id=1),
    "deepseek_v3": transformers.DeepseekV3Config(**DEEPSEEK),
}


def opened(run):
    """The store as xarray has it, every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xarray.open_zarr(run.activations, consolidated=False)


def extracted(model, folder, sites, layers="all"):
    extraction = {"sites": sites, "perplexity": True, "layers": layers, "layer_groups": 2}
    run = Run(folder, config(model, ROWS, folder / "data", extraction=extraction))
    run.prepare()
    run.extract()
    return run


def offered(model, folder):
    """The sites that a model has in its last layer, by its own answer."""
    run = Run(folder, config(model, ROWS, folder / "data", extraction={"sites": list(SITES)}))
    with pytest.raises(ValueError, match="it has ") as refused:
        run.prepare()
    return str(refused.value).split("; it has ")[1].split(";")[0].split(", ")


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    """A run of a mixture of experts, with all of its sites."""
    folder = tmp_path_factory.mktemp("moe")
    model = tiny.checkpoint(folder / "model", MODELS["qwen3_moe"])
    return extracted(model, folder, offered(model, folder / "asked"), [0, 2, 3])


@pytest.mark.parametrize("name", MODELS)
def test_all_sites_of_a_model_open_together(name, tmp_path):
    model = tiny.checkpoint(tmp_path / "model", MODELS[name])
    sites = offered(model, tmp_path / "asked")
    run = extracted(model, tmp_path, sites)
    data = opened(run)
    assert {part.name for site in sites for part in parts(site)} | {"token_loss"} == {
        *data.data_vars
    }
    for site in sites:
        array = zarr.open_group(run.activations, mode="r")[site]
        assert data[site].dims == array.metadata.dimension_names
        assert np.array_equal(data[site].values, array[:], equal_nan=True)
        assert data[site].attrs["long_name"] == SITE_NAMES[site]
        assert data[site].chunksizes["token"] == (51,)
        assert data[site].chunksizes["layer"] == (1,) * len(data["layer"])
    residual = [site for site in sites if data[site].dims[-1] == "channel"]
    assert "resid_post" in residual
    assert all(data[site].shape[-1] == 32 for site in residual)
    with xarray.open_zarr(run.activations.parent / "boundaries.zarr", consolidated=False) as other:
        assert all(array.dims == ("token", "channel") for array in other.values())


def test_the_dimensions_are_as_documented(moe):
    data = opened(moe)
    assert {name: array.dims[-1] for name, array in data.items()} == {
        part.name: DIMENSIONS[site] for site in SITES if site not in ("mlp_hidden", "down_proj_out")
        for part in parts(site)
    } | {"token_loss": "loss"}  # fmt: skip
    assert data["resid_post"].sel(layer=2).isel(channel=5).dims == ("token",)
    assert data["token_id"].dtype == np.int32
    ids = [token for row in ROWS for token in row]
    assert data["token_id"].values.tolist() == ids, "0 is a token, and not missing"
    data["sequence"].load()  # to group by, which a lazy one is not for
    means = abs(data["resid_post"]).groupby("sequence").mean("token")
    first = abs(moe.array("resid_post")[:, : len(ROWS[0])]).mean(1)
    assert np.allclose(means.sel(sequence=0), first)
    assert data["expert_out_expert"].dtype == np.int32
    masked = xarray.open_zarr(moe.activations, consolidated=False, use_zarr_fill_value_as_mask=True)
    assert masked["token_id"].values.tolist() == ids
    lazy = dask.array.from_zarr(str(moe.activations), component="resid_post")
    assert np.array_equal(lazy.max(axis=(1, 2)).compute(), moe.array("resid_post").max((1, 2)))


def test_every_site_declares_a_dimension_and_a_name():
    assert set(DIMENSIONS) == set(SITE_NAMES) == set(SITES)
    assert all(" " in part.long_name or part.name == "v" for s in SITES for part in parts(s))


def test_sites_of_other_widths_have_names_of_their_own():
    def named(**widths):
        return own_names({site: dict(enumerate(of)) for site, of in widths.items()}, 32)

    assert named(resid_pre=[32, 32], q=[24], k=[8], v=[8], attn_hidden=[24]) == {}
    assert named(q=[24, 24], k=[24, 24], v=[12, 12], attn_hidden=[12, 12]) == {
        "v": "v_channel", "attn_hidden": "attn_hidden_channel",
    }  # fmt: skip
    assert named(resid_pre=[32], attn_in=[16]) == {"attn_in": "attn_in_channel"}
    assert named(q=[8, 16], attn_hidden=[8, 16]) == {}, "any choice of layers has one width"
    assert named(q=[8, 16], attn_hidden=[8, 8]) == {"attn_hidden": "attn_hidden_channel"}


def as_older(run):
    """A store as the version before dimensions by width left it."""
    for path in [*run.folder.glob("*.zarr/*/zarr.json"), *run.folder.glob("*.zarr/zarr.json")]:
        metadata = json.loads(path.read_text())
        metadata["attributes"].pop("store_version", None)
        metadata["attributes"].pop("long_name", None)
        names = metadata.get("dimension_names", ())
        if len(names) > 1 and names[-1] not in ("head", "routed", "loss"):
            metadata["dimension_names"] = [*names[:-1], "channel"]
        path.write_text(json.dumps(metadata))
    RunFiles(run.folder).metadata_record.unlink()
    record = json.loads(run.store_record.read_text())
    run.store_record.unlink()  # as Snakemake does before the rule runs
    return record


def chunks(run):
    files = [f for f in sorted(run.folder.rglob("*")) if f.is_file()]
    return {
        f: (f.stat().st_mtime_ns, f.read_bytes())
        for f in files
        if "/c/" in str(f) or f.suffix == ".jsonl"
    }


def names(run):
    return {
        path.parent.name: json.loads(path.read_text()).get("dimension_names")
        for path in run.folder.glob("*.zarr/*/zarr.json")
    }


@pytest.mark.parametrize("kill", [0, 1, 4])
def test_an_older_run_is_renamed_in_place_once(kill, moe, monkeypatch, caplog):
    want, before = names(moe), chunks(moe)
    as_older(moe)
    with pytest.raises(ValueError, match="conflicting sizes for dimension 'channel'"):
        opened(moe)
    left = kill

    def killed(path, content):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        write_whole(path, content)

    if kill:
        monkeypatch.setattr(dimensions, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            moe.create_store()
        monkeypatch.undo()
        assert names(moe) != want
    moe.create_store()
    assert "made by an older version of Outlier Atlas" in caplog.text
    assert names(moe) == want
    assert chunks(moe) == before, "neither chunks nor commits were touched"
    opened(moe)
    moe.verify()
    caplog.clear()
    moe.create_store()
    assert "older version" not in caplog.text


def test_a_run_of_a_newer_version_is_refused(moe):
    recorded = read_record(RunFiles(moe.folder).metadata_record)
    write_record(RunFiles(moe.folder).metadata_record, recorded | {"store_version": 99})
    with pytest.raises(ValueError, match="made by a newer version"):
        moe.create_store()
    RunFiles(moe.folder).metadata_record.unlink()  # as before there was one
    path = moe.activations / "zarr.json"
    whole = path.read_text()
    for version, said in ((99, "made by a newer version"), ("x", "store_version is 'x'")):
        path.write_text(
            whole.replace('"store_version": 3', f'"store_version": {version!r}'.replace("'", '"'))
        )
        try:
            with pytest.raises(ValueError, match=said):
                moe.create_store()
        finally:
            path.write_text(whole)
    refuse_newer(moe.folder)
    write_record(RunFiles(moe.folder).metadata_record, recorded)


@pytest.mark.parametrize("page", ["docs/store.md", "README.md"])
def test_the_examples_of_the_documentation_run(page, tmp_path, monkeypatch):
    values = np.arange(30 * 8 * 576, dtype=np.float32).reshape(30, 8, 576)
    axes = ("layer", "token", "channel")
    coordinates = {"layer": range(30), "sequence": ("token", np.repeat([0, 1], 4))}
    data = xarray.Dataset(dict.fromkeys(("attn_in", "resid_post"), (axes, values)), coordinates)
    data.to_zarr(
        tmp_path / "results" / "smollm2-demo" / "activations.zarr",
        zarr_format=3,
        consolidated=False,
    )
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```|\n\n((?:    [^\n]*\n)+)", text, re.DOTALL)
    found = [textwrap.dedent(a or b) for a, b in blocks]
    examples = [code for code in found if re.match("import (xarray|dask)", code)]
    assert examples
    for code in examples:
        names = {}
        exec(code, names)
        if "largest" in names:
            assert np.array_equal(names["largest"].values, values[11, [3, 7], 507])
