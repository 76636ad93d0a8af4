"""The built-in model and text: real weights, against numbers computed elsewhere."""

import subprocess
import venv
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import zarr
from pipeline import Run, config, hooked
from real import MODEL, TEXT, built_in
from test_report import rendered

from outlier_atlas.checkpoint.source import load_tokenizer
from outlier_atlas.data.corpus import documents
from outlier_atlas.data.reading import Reading
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.settings.dataset import DatasetSettings

ROOT = Path(__file__).parents[1]
RESOURCES = ROOT / "resources"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return built_in(RESOURCES)


def test_dequantized_weights_give_the_known_massive_activations(model):
    """Token 1 alone, in float32; the numbers are those of an independent dequantization."""
    whole = tiny.whole(model, torch.float32)
    with torch.inference_mode():
        hidden = whole(torch.tensor([[1]]), output_hidden_states=True).hidden_states
    # Given to two decimals; kernels may differ by a few parts in a million.
    for channel, value in ((507, 24926.22), (247, 1825.05), (14, 915.61)):
        assert hidden[12][0, 0, channel].item() == pytest.approx(value, rel=5e-6)
    for layer, value in ((2, 769.28), (20, 24826.88), (27, 24538.33)):
        assert hidden[layer + 1][0, 0, 507].item() == pytest.approx(value, rel=5e-5)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """384 tokens of the speeches, cut in three layer groups and two sequence shards."""
    sites = ["resid_pre", "attn_in", "attn_hidden", "mlp_in", "mlp_hidden", "resid_post"]
    run = Run(
        tmp_path_factory.mktemp("real"),
        {
            "model": {"source": MODEL},
            "dataset": {"source": TEXT, "sequences": 3, "sequence_length": 128},
            "extraction": {"sites": sites, "layer_groups": 3, "sequence_shards": 2},
            "execution": {"batch_size": 2},
        },
        RESOURCES,
    )
    run.prepare()
    run.extract()
    return run


def test_the_store_equals_hooks_on_the_whole_real_model(run, model):
    tokens = TokenStore.open(run.tokens)
    assert tokens.tokens == 384
    sites = run.settings.extraction.sites
    # Shards of one and two sequences, at most two in a batch.
    want = hooked(model, "bfloat16", tokens, sites, [range(1), range(1, 3)])
    for site in sites:
        assert np.array_equal(run.array(site).view(np.uint32), want[site].view(np.uint32)), site


def test_the_first_screen_says_where_the_channel_is_massive(model, tmp_path):
    """The published layers: of a sequence that begins in the middle of the first speeches."""
    settings = DatasetSettings(source=TEXT)
    rows = islice(documents(settings, RESOURCES, None, Reading()), 12)
    speeches = " ".join(text for _, text in rows)
    tokenizer = load_tokenizer(model)
    ids = tokenizer(speeches, add_special_tokens=False)["input_ids"]
    (tmp_path / "middle.txt").write_text(tokenizer.decode(ids[4096:4500]))
    run = Run(
        tmp_path,
        {
            "model": {"source": MODEL},
            "dataset": {
                "source": str(tmp_path / "middle.txt"),
                "bos": "never",
                "sequences": 1,
                "sequence_length": 256,
            },
            "extraction": {"sites": ["resid_post"], "layer_groups": 2},
        },
        RESOURCES,
    )
    run.all()
    assert TokenStore.open(run.tokens).token_ids.tolist() == ids[4096 : 4096 + 256]
    rows = run.table("massive_channels")
    assert [r["layer"] for r in rows if r["channel"] == 507] == list(range(11, 29))
    assert {r["channel"] for r in rows} == {247, 507}
    html, findings = rendered(run)
    first = findings["findings"][0]["text"]
    assert first.startswith(
        "Channel 507 of the residual stream (resid_post) is massive in layers 11 to 28:"
    )
    assert html.index(first.split(":")[0]) < html.index('<section id="sites">')


def test_a_single_token_in_bfloat16_is_massive_where_it_is_known_to_be(model, tmp_path):
    data = config(model, [[1]], tmp_path / "data", extraction={"sites": ["resid_post"]})
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    assert run.array("resid_post")[11, 0, 507] == 24960


def test_the_store_opens_where_there_is_only_zarr(run, tmp_path):
    environment = tmp_path / "only-zarr"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", "zarr"]
    subprocess.run(pip, check=True)
    code = f"import zarr; print(zarr.open({str(run.activations)!r})['attn_in'][3, 7, :4].tolist())"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(run.array("attn_in")[3, 7, :4].tolist())
    array = zarr.open(run.activations)["attn_in"]
    assert array.shape == (30, 384, 576)
    assert array.metadata.dimension_names == ("layer", "token", "channel")
