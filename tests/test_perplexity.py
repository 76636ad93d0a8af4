"""Perplexity: the losses of the whole model's own logits, in any layer groups."""

import copy
import json
import re

import numpy as np
import pytest
import tiny
import torch
import transformers as t
import zarr
from pipeline import Run, config
from safetensors.torch import load_file
from test_architectures import EXACT, LISTED, MULTIMODAL, REFUSED, ROWS, name
from test_report import rendered

from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.extraction import compute
from outlier_atlas.roles import lm_head as head_module
from outlier_atlas.roles.architecture import describe
from outlier_atlas.roles.lm_head import Head, block_tokens

# A cap, a factor, a bias, several tensors: what heads have beside a matrix.
ODD_HEADS = [
    t.CohereConfig(**tiny.SIZES, logit_scale=0.25, pad_token_id=0),
    t.GraniteConfig(**tiny.SIZES, logits_scaling=3.0),
    t.Gemma2Config(**tiny.SIZES, head_dim=8, sliding_window=4, final_logit_softcapping=0.5),
]
EACH = {type(c): c for c in [*(c for c, _ in LISTED + REFUSED), *EXACT]}


def whole_losses(model, rows=ROWS, dtype=torch.bfloat16):
    """Return the losses of the whole model's logits at once, which the code never does."""
    loaded = tiny.auto_class(load_config(model)).from_pretrained(model, dtype=dtype).eval()
    losses = []
    with torch.inference_mode():
        for row in rows:
            logits = loaded(torch.tensor([row]), use_cache=False).logits[0].float()
            own = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(row[1:])[:, None])
            losses += [torch.tensor([float("nan")]), -own[:, 0]]
    return torch.cat(losses).numpy()


def made(model, tmp_path, groups, **extraction):
    extraction = {"sites": ["resid_post"], "layer_groups": groups} | extraction
    data = config(
        model, ROWS, tmp_path / "data", run={"name": f"in-{groups}"}, extraction=extraction
    )
    return Run(tmp_path, data)


def equal(got, want):
    return np.array_equal(got.ravel().view(np.uint32), want.ravel().view(np.uint32))


@pytest.mark.parametrize("architecture", [*(c for c, _ in LISTED), *ODD_HEADS], ids=name)
def test_losses_are_those_of_the_whole_models_logits(architecture, tmp_path):
    """One layer group has the head's own weights, the last of three those of the embedding."""
    for tied, groups in ((False, 1), (True, 3)):
        own = copy.deepcopy(architecture)
        own.tie_word_embeddings = tied
        folder = tmp_path / f"tied-{tied}"
        model = tiny.checkpoint(folder / "model", own)
        want = whole_losses(model)
        assert np.isnan(want).sum() == len(ROWS)
        run = made(model, folder, groups, perplexity=True)
        run.prepare()
        run.extract()
        assert equal(run.array("token_loss"), want), f"tied {tied}, {groups} layer groups"


@pytest.mark.parametrize("architecture", [*EACH.values(), *MULTIMODAL], ids=name)
def test_every_head_is_understood_or_refused(architecture):
    try:
        described = describe(architecture)
    except ValueError as error:
        assert re.search(r"not pass on a residual stream|layer \d+ does not run", str(error))
        return
    described.check_head(1)
    assert described.head.vocabulary == 320


def test_a_cap_changes_the_losses(tmp_path):
    """Otherwise the test above would not notice a missing cap."""
    capped, free = (
        whole_losses(
            tiny.checkpoint(
                tmp_path / str(cap),
                t.Gemma2Config(
                    **tiny.SIZES, head_dim=8, sliding_window=4, final_logit_softcapping=cap
                ),
            )
        )
        for cap in (0.5, None)
    )
    assert np.nanmax(abs(capped - free)) > 0.01


def test_a_head_with_a_bias(tmp_path):
    model = tiny.checkpoint(tmp_path / "model", t.PhiConfig(**tiny.SIZES, pad_token_id=0))
    weights = load_file(model / "model.safetensors")
    weights["lm_head.bias"] = torch.linspace(-2, 2, 320).bfloat16()
    tiny.save_weights(model, weights)
    run = made(model, tmp_path, 2, perplexity=True)
    run.prepare()
    run.extract()
    assert equal(run.array("token_loss"), whole_losses(model))


def test_logits_are_made_in_pieces(llama, tmp_path, monkeypatch):
    """Pieces keep the bound; each predicted token is computed once, the last token never."""
    shapes = []
    logits = Head.logits

    def seen(self, hidden):
        made = logits(self, hidden)
        if made.device.type == "cpu":  # and not the plan's, without memory
            shapes.append(tuple(made.shape))
        return made

    monkeypatch.setattr(head_module, "LOGITS_BYTES", 4 * 4 * 320)
    monkeypatch.setattr(Head, "logits", seen)
    run = made(llama, tmp_path, 2, perplexity=True)
    run.prepare()
    run.extract()
    assert shapes == [(1, 4, 320), (1, 4, 320), (1, 1, 320)] * 2
    # Matrix products of other shapes: bfloat16 logits may differ in their last bit, 2^-8 of them.
    got = run.array("token_loss")[:, 0]
    assert np.allclose(got, whole_losses(llama), atol=0.02, equal_nan=True)


def test_a_piece_is_bounded_and_holds_at_least_a_token():
    for vocabulary in (2, 49_152, 151_936, 10**9):
        tokens = block_tokens(vocabulary)
        assert tokens == 1 or 4 * tokens * vocabulary <= head_module.LOGITS_BYTES
        assert 8 * tokens * vocabulary > head_module.LOGITS_BYTES


def test_batches_and_shards_change_no_loss(llama, tmp_path):
    rows = [ROWS[0], ROWS[1], ROWS[0][::-1], ROWS[1][::-1]]
    want = whole_losses(llama, rows)
    data = config(
        llama, rows, tmp_path / "data",
        extraction={"perplexity": True, "layer_groups": 2, "sequence_shards": 2,
                    "verify": "first_batch", "advanced": {"chunk_tokens": 7}},
        execution={"batch_size": 2},
    )  # fmt: skip
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    got = zarr.open(run.activations)["token_loss"]
    assert got.shape == (40, 1)
    assert got.metadata.dimension_names == ("token", "loss")
    # Other shapes, see above.
    assert np.allclose(got[:, 0], want, atol=0.02, equal_nan=True)


def test_added_to_a_finished_run_the_last_layer_group_alone_runs(llama, tmp_path, monkeypatch):
    run = made(llama, tmp_path, 3)
    run.prepare()
    run.extract()
    before = run.array("resid_post")
    loaded = []
    load = compute.load

    def watched(job, work, missing, where):
        loaded.append((job.group, sorted({t.array for ts in missing.values() for t in ts})))
        return load(job, work, missing, where)

    monkeypatch.setattr(compute, "load", watched)
    more = made(llama, tmp_path, 3, perplexity=True)
    more.create_store()
    more.extract()
    assert loaded == [(2, ["token_loss"])]
    assert equal(run.array("resid_post"), before)
    assert equal(run.array("token_loss"), whole_losses(llama))
    more.extract()
    assert len(loaded) == 1, "what is committed is not computed again"


def test_layers_above_the_measured_ones_run_and_are_not_stored(llama, tmp_path):
    run = made(llama, tmp_path, 4, layers=[1], perplexity=True)
    run.prepare()
    run.extract()
    assert run.array("resid_post").shape[0] == 1
    assert json.loads(run.store_record.read_text())["layer_groups"][-1] == [3, 3]
    assert equal(run.array("token_loss"), whole_losses(llama))


def test_the_table_and_the_report_give_the_perplexity_with_its_definition(llama, tmp_path):
    run = made(llama, tmp_path, 2, perplexity=True)
    run.all()
    want = whole_losses(llama)
    rows = run.table("perplexity")
    assert [(row["sequence"], row["tokens"]) for row in rows] == [(0, 9), (1, 9), (None, 18)]
    for row, own in zip(rows, (want[1:10], want[11:], np.delete(want, [0, 10])), strict=True):
        assert row["loss"] == own.astype(np.float64).mean()
        assert row["perplexity"] == np.exp(row["loss"])
    html, _ = rendered(run)
    assert f"{rows[-1]['perplexity']:,.4g}: exp of the mean negative log-likelihood" in html


def test_without_it_there_is_no_loss_and_the_report_says_so(llama, tmp_path):
    run = made(llama, tmp_path, 1)
    run.all()
    assert "token_loss" not in zarr.open(run.activations)
    assert run.table("perplexity") == []
    assert "not computed (extraction.perplexity)" in rendered(run)[0]


def test_a_head_that_is_not_understood_is_refused(tmp_path, monkeypatch):
    def unclear(self, hidden):
        raise TypeError("no inputs_embeds")

    monkeypatch.setattr(Head, "logits", unclear)
    run = made(tiny.llama(tmp_path / "model"), tmp_path, 1, perplexity=True)
    with pytest.raises(
        ValueError, match=r"perplexity of .* cannot be computed: its head does not run without"
    ):
        run.prepare()
