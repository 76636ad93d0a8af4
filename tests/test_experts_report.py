"""What is recorded of experts, in the table and the report."""

import re
import shutil
from itertools import product

import numpy as np
import pytest
import tiny
import torch
import transformers as t
from experts import ARCHITECTURES, ROWS, extracted, load, reference, stored
from pipeline import Run, config
from test_report import Page, rendered

from outlier_atlas.checkpoint.source import load_tokenizer
from outlier_atlas.criteria.experts.show import seen
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.report import figures


def planted(folder):
    """Qwen3-MoE in which no token of layer 1 is routed to experts 4 to 7, and in layer 2 the
    outputs of expert 3 are a thousand times as large as they were."""
    tiny.qwen3_moe(folder)
    model = load(folder)
    with torch.no_grad():
        gate = model.model.layers[1].mlp.gate.weight
        gate[4:] = -gate[:4]  # a token's two best are never two opposites
        gate[:2] *= 64
        model.model.layers[2].mlp.experts.down_proj[3] *= 1000
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    model = planted(folder / "model")
    run = extracted(model, folder, sites=["expert_out", "mlp_in"], sequence_shards=2)
    run.detect()
    return run


def test_the_table_is_that_of_a_loop_over_the_experts(run):
    values, experts, channels, *_ = stored(run)
    ids = TokenStore.open(run.tokens).token_ids
    rows = run.table("expert_magnitudes")
    assert [(row["layer"], row["expert"]) for row in rows] == [*product(range(4), range(8))]
    for row in rows:
        layer, expert = row["layer"], row["expert"]
        tokens, slots = np.nonzero(experts[layer] == expert)
        assert row["tokens"] == len(tokens)
        assert row["token_share"] == len(tokens) / 20
        assert (row["nan"], row["infinite"]) == (0, 0)
        assert row["enough_tokens"] is (len(tokens) > 0)
        if not len(tokens):
            empty = ("value", "channel", "token_index", "sequence", "token_id", "token_text")
            assert [row[column] for column in empty] == [None] * len(empty)
            continue
        mine = values[layer, tokens, slots]
        largest = np.abs(mine).argmax()
        assert row["value"] == mine[largest]
        assert row["token_index"] == tokens[largest]
        assert row["channel"] == channels[layer, tokens[largest], slots[largest]]
        assert row["token_id"] == ids[tokens[largest]]
        assert (row["sequence"], row["position"]) == [
            (s, p) for s, ids in enumerate(ROWS) for p in range(len(ids))
        ][tokens[largest]]
    assert sum(row["tokens"] for row in rows) == 4 * 20 * 2


def test_a_planted_expert_is_named(run):
    folder = run.settings.model.source
    want = reference(folder)
    values, experts, channels, *_ = want[:, 2]
    token, slot = np.unravel_index(np.abs(values).argmax(), values.shape)
    top = max(run.table("expert_magnitudes"), key=lambda row: abs(row["value"] or 0))
    assert experts[token, slot] == 3
    assert (top["layer"], top["expert"]) == (2, 3)
    assert top["channel"] == channels[token, slot]
    assert top["value"] == values[token, slot]
    assert top["token_index"] == token


def test_unseen_experts_are_counted(run):
    want = reference(run.settings.model.source)[1]
    unseen = {(la, e) for la in range(4) for e in range(8) if not (want[la] == e).any()}
    rows = run.table("expert_magnitudes")
    assert {(r["layer"], r["expert"]) for r in rows if not r["tokens"]} == unseen
    assert unseen
    html, _ = rendered(run)
    assert f"{len(unseen)} of 32 experts" in Page(html).said


def detected(run, tmp_path, **detection):
    """The same store under other settings of detection."""
    again = Run(tmp_path, {**run.settings.model_dump(), "detection": detection})
    for path in ("folder", "store_record", "tokens", "tokens_record", "model_record"):
        setattr(again, path, getattr(run, path))
    again.tables = tmp_path / "tables"
    again.detect()
    return again


def test_shares_are_of_the_tokens_that_are_not_left_out(run, tmp_path):
    again = detected(run, tmp_path, exclude={"first_positions": 1, "token_ids": [6]})
    kept = np.concatenate([[i > 0 and token != 6 for i, token in enumerate(r)] for r in ROWS])
    _, experts, *_ = stored(run)
    for row in again.table("expert_magnitudes"):
        mine = (experts[row["layer"]][kept] == row["expert"]).any(axis=1)
        assert row["token_share"] == mine.sum() / kept.sum()
        assert row["token_share_low"] <= row["token_share"] <= row["token_share_high"]
        ends = [(experts[row["layer"]] == row["expert"]).any(axis=1)[s][kept[s]].mean() for s in
                (slice(0, 7), slice(7, 14), slice(14, 17), slice(17, 20))]  # fmt: skip
        assert min(ends) <= row["token_share_low"] <= row["token_share_high"] <= max(ends)
    nothing = detected(run, tmp_path / "nothing", exclude={"first_positions": 7})
    assert {row["token_share"] for row in nothing.table("expert_magnitudes")} == {None}


def test_experts_with_too_few_tokens_are_listed(run, tmp_path):
    again = detected(run, tmp_path, experts={"min_tokens": 5})
    few = {(r["layer"], r["expert"]) for r in again.table("expert_magnitudes") if r["tokens"] < 5}
    shutil.copytree(run.folder / "manifests", tmp_path / "manifests")
    again.folder = tmp_path
    html, _ = rendered(again)
    assert f"{len(few)} of 32 experts saw fewer than 5 tokens." in Page(html).said
    section = html.split('<section id="experts">')[1].split("<figure")[0]
    listed = {
        (int(layer), int(expert))
        for layer, _, _, experts in re.findall(
            "<tr>" + "<td[^>]*>([^<]*)</td>" * 4 + "</tr>", section
        )
        for first, last in re.findall(r"(\d+)(?: to (\d+))?", experts)
        for expert in range(int(first), int(last or first) + 1)
    }
    assert listed == few


@pytest.mark.parametrize(
    ("few", "least", "sentence"),
    [
        (37, 1, "37 of 6,144 experts are unseen: no token of this run was routed to them."),
        (1, 1, "1 of 6,144 experts is unseen: no token of this run was routed to it."),
        (37, 100, "37 of 6,144 experts saw fewer than 100 tokens."),
        (0, 1, "All 6,144 experts saw at least 1 token."),
    ],
)
def test_how_many_experts_saw_too_few_is_a_sentence(few, least, sentence):
    assert seen(few, 6144, least) == sentence


def test_the_report_shows_the_experts_only_where_they_were_measured(run, llama, tmp_path):
    html, _ = rendered(run, rows=3)
    section = html.split('<section id="experts">')[1].split("</section>")[0]
    assert "The first 3 of" in section
    assert section.count("<svg") == 1
    assert section.split("The largest outputs")[1].count("<tr>") == 1 + 3
    first = re.search(r"The largest outputs.*?<tbody>\s*<tr><td>(\d+)</td><td>(\d+)", section, re.S)
    assert first
    assert first.groups() == ("2", "3")
    other = Run(tmp_path, config(llama, [[5, 6]], tmp_path / "data"))
    other.all()
    assert other.table("expert_magnitudes") == []
    html, _ = rendered(other)
    assert 'id="experts"' not in html
    assert "expert_out is not among the sites of this run" in html


def test_a_run_of_experts_alone_has_a_report(tmp_path):
    run = extracted(tiny.checkpoint(tmp_path / "model", ARCHITECTURES[1]), tmp_path)
    run.detect()
    assert run.table("layer_magnitudes") == run.table("channel_maxima") == []
    html, findings = rendered(run)
    assert len(findings["findings"]) == 5
    assert '["expert_out"]     # (layer, token, routed), float32' in Page(html).said
    assert {*figures.drawings(run.tables)} == {"expert_out-experts"}


def test_hostile_tokens_stay_text(tmp_path):
    model = tiny.qwen3_moe(tmp_path / "model")
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens([t.AddedToken("<script>alert(1)</script>\x1b[0m", normalized=False)])
    tokenizer.save_pretrained(model)
    word = len(tokenizer) - 1
    extraction = {"sites": ["expert_out"]}
    run = Run(tmp_path, config(model, [[word] * 4], tmp_path / "data", extraction=extraction))
    run.all()
    page = Page(rendered(run)[0])
    assert "script" not in page.tags
    assert "<script>alert(1)</script>␛[0m" in page.said
    assert "alert(1)" not in rendered(run, text="none")[0]


def test_not_finite_outputs_are_said_and_left_out(tmp_path):
    folder = tiny.qwen3_moe(tmp_path / "model")
    model = load(folder)
    with torch.no_grad():
        model.model.layers[3].mlp.experts.down_proj[:, 7] = float("inf")
    model.save_pretrained(folder)
    run = extracted(folder, tmp_path)
    run.detect()
    rows = run.table("expert_magnitudes")
    lost = [row for row in rows if row["nan"] or row["infinite"]]
    assert {row["layer"] for row in lost} == {3}
    assert sum(row["nan"] + row["infinite"] for row in lost) == 20 * 2
    assert all(row["value"] is None for row in lost)
    lost, counts, *_ = rendered(run)[1]["alarms"]
    assert lost.startswith("No value is finite in layer 3 at expert_out: nothing could be meas")
    assert "expert_out holds" in counts


@pytest.mark.parametrize("criterion", ["llm_int8", "massive_activations"])
def test_no_criterion_takes_expert_numbers_for_activations(criterion, llama, tmp_path):
    key = {"llm_int8": {"sites": ["expert_out"]}, "massive_activations": {"site": "expert_out"}}
    data = config(llama, [[5, 6]], tmp_path, detection={criterion: key[criterion]})
    with pytest.raises(ValueError, match=rf"detection\.{criterion}\.site.*expert_out"):
        Run(tmp_path, data)
