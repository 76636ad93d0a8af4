"""The report: what it says, and that nothing in it runs, leaves the page or is not escaped."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import quantized
import tiny
from pipeline import Run, config
from safetensors.torch import load_file
from tokenizers import AddedToken

from outlier_atlas import text
from outlier_atlas.checkpoint.source import load_tokenizer
from outlier_atlas.files import read_record, write_record
from outlier_atlas.report import figures
from outlier_atlas.report.page import PageInputs, render

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; & ]]> -->",
    "\x1b[31mred\x1b[0m\x07",
    "\u202eright to left\u2066",
    "javascript:alert(3)",
    "\ufeff\u200b\u2028\udcff",
]


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.said = set(), [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.said += data


def rendered(run, ablations=False, **report):
    """Render the report of a run; the page and its findings."""
    page, findings = run.folder / "report.html", run.folder / "findings.json"
    configuration = run.settings.model_dump(mode="json", exclude={"execution"})
    inputs = PageInputs(configuration, run.stored, ablations)
    render(report, inputs, page, findings)
    return page.read_text(encoding="utf-8"), json.loads(findings.read_text())


def _section(html, name):
    return html.split(f'<section id="{name}">')[1].split("</section>")[0]


def massive(folder, name="model", words=()):
    """A model with a massive activation at token 9, and tokens whose text is `words`."""
    model, weights = tiny.silent(folder / name, layers=3)
    weights["model.embed_tokens.weight"][9, 7] = 4096
    tiny.save_weights(model, weights)
    if words:
        tokenizer = load_tokenizer(model)
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
        tokenizer.save_pretrained(model)
    return model


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run in which every text that a stranger could choose is hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    words = [word for word in HOSTILE if "\udcff" not in word]
    model = massive(folder, "<img src=x onerror=alert(4)>", words)
    tokenizer = load_tokenizer(model)
    ids = [tokenizer.convert_tokens_to_ids(word) for word in words]
    assert None not in ids
    rows = [[9, *ids, 11], [*ids, 9, *ids]]
    run = Run(folder, config(model, rows, folder / "<b>data</b>"))
    run.all()
    return run


def test_hostile_text_stays_text(hostile):
    html, findings = rendered(hostile, title="<script>alert(5)</script>\x1b[2J")
    page = Page(html)
    assert not page.tags & {"script", "b", "iframe", "object", "form", "base", "link"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    outside = [v for n, v in page.attributes if n in ("src", "srcset") and v[:5] != "data:"]
    assert outside == []
    links = [v for n, v in page.attributes if n == "href"]
    assert {link[0] for link in links if not link.startswith("data:image/png;base64,")} == {"#"}
    # It is all there for the reader, as text.
    for word in HOSTILE[:4]:
        assert word in page.said
    assert "␛[31mred␛[0m␇" in page.said
    assert "⟨U+202E⟩right to left⟨U+2066⟩" in page.said
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)
    assert not re.search(r"[\x00-\x1f\x7f\u202a-\u202e]", json.dumps(findings, ensure_ascii=False))


def test_weights_that_were_dequantized_are_said_to_be(hostile, tmp_path):
    model = quantized.mxfp4(tmp_path / "model").packed
    run = Run(tmp_path, config(model, [[9, 5, 7]], tmp_path / "data"))
    run.all()
    html, _ = rendered(run)
    assert " MiB, mxfp4, dequantized to bfloat16, fingerprint " in Page(html).said
    assert "dequantized to" not in rendered(hostile)[0]


def test_the_page_needs_nothing_from_outside(hostile):
    html, _ = rendered(hostile)
    assert "default-src 'none'" in html
    page = Page(html)
    assert not [v for _, v in page.attributes if v and re.match(r"(https?:)?//", v)]
    assert "@import" not in html
    assert "url(" not in html.split("</style>")[0]


@pytest.mark.parametrize(("shown", "context", "token"), [
    ("full", True, True), ("tokens", False, True), ("none", False, False),
])  # fmt: skip
def test_as_much_text_is_shown_as_is_wanted(tmp_path, shown, context, token):
    model = massive(tmp_path, words=["zebra", "giraffe"])
    tokenizer = load_tokenizer(model)
    zebra, giraffe = (tokenizer.convert_tokens_to_ids(word) for word in ("zebra", "giraffe"))
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][zebra, 7] = 4096
    tiny.save_weights(model, weights)
    run = Run(tmp_path, config(model, [[zebra, giraffe, 11]], tmp_path / "data"))
    run.all()
    html, findings = rendered(run, text=shown)
    everything = html + json.dumps(findings)
    assert ("giraffe" in everything) is context
    assert ("zebra" in everything) is token
    if not token:
        assert f"id {zebra}" in html


def test_the_first_screen_has_five_sentences_with_their_definitions(hostile):
    html, findings = rendered(hostile)
    sentences = findings["findings"]
    assert len(sentences) == 5
    assert sentences[0]["text"].startswith(
        "Channel 7 of the residual stream (resid_post) is massive in layers 0 to 2: it reaches"
    )
    assert "times the median of |x|" in sentences[0]["definition"]
    start = Page(html.split('<section id="sites">')[0]).said
    for sentence in sentences:
        assert sentence["text"] in start
        assert sentence["definition"] in start


def test_sequences_of_a_channel_are_counted_over_its_layers(tmp_path):
    """Massive in another sequence in each layer: in two sequences, though in one per layer."""
    model, weights = tiny.silent(tmp_path / "model", layers=2)
    weights["model.embed_tokens.weight"][:, 3:5] = 0
    for layer, token in ((0, 9), (1, 10)):
        weights["model.embed_tokens.weight"][token, 3 + layer] = 1
        mlp = f"model.layers.{layer}.mlp"
        for name in ("gate_proj", "up_proj"):
            weights[f"{mlp}.{name}.weight"][0] = 0
            weights[f"{mlp}.{name}.weight"][0, 3 + layer] = 16
        weights[f"{mlp}.down_proj.weight"][:, 0] = 0
        weights[f"{mlp}.down_proj.weight"][7, 0] = 16
    # What layer 0 added, layer 1 takes away again.
    weights["model.layers.1.mlp.gate_proj.weight"][1] = 0
    weights["model.layers.1.mlp.gate_proj.weight"][1, 7] = 4
    weights["model.layers.1.mlp.up_proj.weight"][1] = 0
    weights["model.layers.1.mlp.up_proj.weight"][1, 7] = 4
    weights["model.layers.1.mlp.down_proj.weight"][7, 1] = -8.25
    tiny.save_weights(model, weights)
    data = config(model, [[9] + [11] * 15, [10] + [11] * 15], tmp_path / "data")
    run = Run(tmp_path, data)
    run.all()
    channels = run.table("massive_channels")
    assert [(r["layer"], r["channel"], r["sequences"]) for r in channels] == [(0, 7, 1), (1, 7, 1)]
    html, findings = rendered(run)
    assert any("of channel 7 in 2 of 2 sequences" in f["text"] for f in findings["findings"])
    assert "<td>2 of 2</td>" in html


def test_what_was_not_measured_is_not_zero(llama, tmp_path):
    extraction = {"sites": ["mlp_in"]}
    run = Run(tmp_path, config(llama, [[5, 6, 7]], tmp_path / "data", extraction=extraction))
    run.all()
    html, findings = rendered(run)
    said = Page(html).said
    assert not re.search(r'id="(massive|sinks|llm-int8|super-weights|token-outliers)"', html)
    missing = Page(_section(html, "missing")).said
    for name in (
        "Massive activations",
        "Attention sinks",
        "LLM.int8()",
        "Super weights",
        "Perplex",
    ):
        assert name in missing
    assert "resid_post is not among the sites of this run" in missing
    assert "massive activations were not measured: resid_post is not among" in said
    assert len(findings["findings"]) == 5
    assert "None." not in said


def test_where_nothing_is_found_the_closest_is_said(tmp_path):
    model, weights = tiny.silent(tmp_path / "model", layers=2)
    tiny.save_weights(model, weights)
    run = Run(tmp_path, config(model, [[5, 6, 7]], tmp_path / "data"))
    run.all()
    html, findings = rendered(run)
    said = [finding["text"] for finding in findings["findings"]]
    assert "No value of the residual stream (resid_post) is a massive activation." in said
    assert any(s.startswith("No channel of attn_in and mlp_in is an outlier feature") for s in said)
    assert any(s.startswith("None of the 6 readings of LLM.int8()'s two shares") for s in said)
    assert "The closest: |x| reaches 1 " in Page(html).said


def test_nan_and_infinity_are_said_before_anything_else(tmp_path):
    model, weights = tiny.silent(tmp_path / "model", layers=2)
    weights["model.embed_tokens.weight"][9, 2] = float("nan")
    tiny.save_weights(model, weights)
    run = Run(tmp_path, config(model, [[11, 9]], tmp_path / "data"))
    run.all()
    html, findings = rendered(run)
    assert findings["alarms"][0].startswith(
        "No value is finite in layer 1 at attn_in; layers 0 and"
    )
    assert findings["alarms"][1].startswith("attn_in holds ")
    assert html.index('role="alert"') < html.index('class="findings')


def test_equal_runs_give_equal_pages_and_figures(hostile, tmp_path, monkeypatch):
    assert rendered(hostile) == rendered(hostile)
    each = figures.drawings(hostile.tables)
    some = {name: each[name] for name in ("resid_post-magnitudes", "resid_post-maxima")}
    monkeypatch.setattr(figures, "drawings", lambda tables: some)
    for folder in ("one", "two"):
        figures.draw(tmp_path / folder, hostile.tables)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("one", "two")
    )
    assert one == two
    assert len(one) == 8


def test_what_jobs_took_stands_beside_what_was_planned(llama, tmp_path):
    run = Run(tmp_path, config(llama, [[11] * 8], tmp_path / "data"))
    run.all()
    record = run.folder / "measured" / "group-0.shard-0.json"
    took = read_record(record)
    changed = {"predicted_host": 700 * 2**20, "host": 655 * 2**20, "device": "<b>\x1b"}
    write_record(record, took | changed)
    html, _ = rendered(run)
    table = html.split("Memory: predicted and measured")[1].split("</table>")[0]
    assert "<td>700</td><td>655</td>" in table
    assert "&lt;b&gt;" in table
    assert "\x1b" not in table
    record.unlink()
    assert "Memory: predicted and measured" not in rendered(run)[0]


def test_rows_are_limited_and_the_rest_is_named(tmp_path):
    model, weights = tiny.silent(tmp_path / "model", layers=2)
    weights["model.embed_tokens.weight"][9, :10] = 2.0**20
    tiny.save_weights(model, weights)
    run = Run(tmp_path, config(model, [[11] * 40 + [9]], tmp_path / "data"))
    run.all()
    html, _ = rendered(run, rows=3)
    assert "The first 3 of 10 channels are shown" in html
    assert len(re.findall(r"<mark>[^<]*</mark>.*?</tr>", _section(html, "massive"))) == 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [(24926.22, "24,926"), (31.5, "31.5"), (0.0123411, "0.01234"), (-1000, "-1,000")],
)
def test_numbers_are_readable(value, shown):
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0 %"), (1, "100 %"), (0.25, "25 %"), (1e-9, "0.01 %"), (0.99999, "over 99.9 %")],
)
def test_only_all_is_a_hundred_per_cent(share, shown):
    assert text.percent(share) == shown


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([11, 12, 13], "layers 11 to 13"), ([3], "layer 3"),
     ([1, 2, 5, 6, 7], "layers 1, 2 and 5 to 7")],
)  # fmt: skip
def test_layers_in_words(numbers, words):
    assert text.layers(numbers) == words


CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page_without_errors_or_requests(hostile, tmp_path, width):
    rendered(hostile)
    picture, log = tmp_path / "page.png", tmp_path / "net.json"
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900", "--enable-logging=stderr", f"--log-net-log={log}",
        f"--screenshot={picture}", (hostile.folder / "report.html").resolve().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    assert picture.stat().st_size > 20_000
    asked = set(re.findall(r'"url":"https?://([^/"]+)', log.read_text()))
    # The browser itself asks its maker for the time and for updates.
    assert {host for host in asked if not re.search(r"google(apis)?\.com$", host)} == set()


def test_the_parts_of_the_page_lie_beside_its_module():
    from outlier_atlas.report.templates import TEMPLATES

    assert all(path.is_file() for path in TEMPLATES)
