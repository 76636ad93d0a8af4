"""Tests that tokens are those that the user's own call of the tokenizer returns."""

import ast
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import tiny
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer, BertTokenizerFast

from outlier_atlas.checkpoint.folder import is_tokenizer_file, tokenizer_fingerprint
from outlier_atlas.checkpoint.source import fetch, load_tokenizer
from outlier_atlas.data.encoding import encoder, special_ids
from outlier_atlas.data.prepare import tokenize_dataset
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.files import read_record
from outlier_atlas.report.facts import facts, start
from outlier_atlas.settings.dataset import DatasetSettings
from outlier_atlas.settings.model import ModelSettings

BOS, EOS, IM_START, IM_END = range(4)
DATED = "{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
)


@pytest.fixture
def model(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "model")


def tokenized(model, tmp_path, column, values, **settings):
    """Return the sequences, the record and the tokenizer."""
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({column: value}) + "\n" for value in values))
    record = tmp_path / "model.json"
    fetch(ModelSettings(source=str(model)), tmp_path, record)
    if column != "text":
        settings = {f"{column}_column": column, **settings}
    settings = DatasetSettings(**{"source": str(source), "sequences": 1, **settings})
    output = tmp_path / "tokens.parquet"
    tokenize_dataset(settings, record, tmp_path, False, None, output, tmp_path / "tokens.json")
    store = TokenStore.open(output)
    sequences = [store.sequence(i).tolist() for i in range(store.sequences)]
    return sequences, read_record(tmp_path / "tokens.json"), load_tokenizer(model)


def changed(model, change):
    """Give the model another tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    change(tokenizer)
    tokenizer.save_pretrained(model)


def around(*before, end=()):
    """Return a change that makes a tokenizer add special tokens around a text by default."""

    def change(tokenizer):
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in {*before, *end}]
        single = " ".join([*before, "$A", *end])
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=ids
        )

    return change


def custom(tokenizer):
    tokenizer.add_tokens([AddedToken("<|custom|>", special=True)])


def document(model, tmp_path, text, **settings):
    (sequence,), record, tokenizer = tokenized(
        model, tmp_path, "text", [text], packing="document", **settings
    )
    return sequence, record, tokenizer


def test_special_tokens_in_a_text_are_those_of_the_users_own_call(model, tmp_path):
    changed(model, custom)
    text = "<|im_start|>user\nWho? <|custom|><|im_end|><|bos|>"
    sequence, record, tokenizer = document(model, tmp_path, text)
    assert sequence == tokenizer(text)["input_ids"]
    custom_id = tokenizer.convert_tokens_to_ids("<|custom|>")
    assert {IM_START, IM_END, custom_id} <= set(sequence)
    assert record["special_tokens_in_text"] == 4
    assert custom_id in record["special_ids"]
    sequence, record, tokenizer = document(model, tmp_path, text, special_tokens="split")
    assert not {IM_START, IM_END, EOS, custom_id} & set(sequence)
    assert record["special_tokens_in_text"] == 0
    assert tokenizer.decode(sequence) == f"<|bos|>{text}"


def test_what_is_cut_off_counts_no_special_tokens(model, tmp_path):
    text = "<|im_start|>" * 3 + "a" * 50 + "<|im_end|>" * 9
    _, record, _ = document(model, tmp_path, text, sequence_length=16)
    assert record["special_tokens_in_text"] == 3
    _, record, _ = tokenized(model, tmp_path, "text", ["<|eos|>a", "b" * 99], sequence_length=8)
    assert record["special_tokens_in_text"] == 1


@pytest.mark.parametrize(
    ("before", "end"),
    [((), ()), (("<|bos|>",), ("<|eos|>",)), (("<|im_start|>",), ("<|im_end|>",)),
     (("<|bos|>", "<|im_start|>"), ())],
)  # fmt: skip
def test_auto_begins_with_what_the_tokenizer_puts_first(model, tmp_path, before, end):
    changed(model, around(*before, end=end))
    first = tiny.SPECIAL
    sequence, record, tokenizer = document(model, tmp_path, "<|bos|>Who?")
    assert sequence == tokenizer("<|bos|>Who?")["input_ids"]
    assert record["start_ids"] == [first.index(name) for name in before]
    assert record["start"] == list(before)
    wanted = f"at every sequence: {' '.join(before)}" if before else "none added"
    assert start(record) == wanted
    text = tiny.SENTENCES[0]
    sequences, _, tokenizer = tokenized(
        model, tmp_path, "text", [text], sequences=3, sequence_length=8
    )
    ids = [first.index(name) for name in before]
    assert all(sequence[: len(ids)] == ids for sequence in sequences)
    body = [token for sequence in sequences for token in sequence[len(ids) :]]
    assert body == tokenizer(text, add_special_tokens=False)["input_ids"][: len(body)]


def test_a_tokenizer_whose_start_fills_a_sequence_is_refused(model, tmp_path):
    changed(model, around("<|bos|>", "<|im_start|>"))
    for packing in ("concat", "document"):
        with pytest.raises(ValueError, match="begins each sequence with 2 tokens of its own"):
            tokenized(model, tmp_path, "text", ["abc"], packing=packing, sequence_length=2)


words = st.lists(
    st.sampled_from(
        ["<|im_start|>", "<|custom|>", " ", "\n", "x" * 40, "the", "東京🙂", "a b ", "<|"]
    ),
    min_size=20, max_size=120,
).map("".join)  # fmt: skip


@pytest.fixture(scope="module")
def customised(llama, tmp_path_factory):
    folder = shutil.copytree(llama, tmp_path_factory.mktemp("custom") / "model")
    changed(folder, custom)
    return load_tokenizer(folder)


@hypothesis_settings(deadline=None, max_examples=60)
@given(words, st.integers(2, 9), st.integers(0, 40))
@example("a" * 90 + "<|im_start|>" * 400, 2, 5)
@example("<|custom|>" * 900, 2, 3)
def test_the_start_of_a_long_text_has_the_tokens_of_the_whole(customised, text, length, shift):
    text = "y" * shift + text * 4
    settings = DatasetSettings(source="./t", packing="document", sequence_length=length)
    own = list(encoder(settings, customised, 400)(text).ids)
    whole = customised(text, add_special_tokens=False)["input_ids"]
    assert own[:length] == whole[:length]


def test_a_word_that_is_cut_leaves_the_tokens_before_it_alone(tmp_path):
    """WordPiece makes one token of a word that is too long, but several of its beginning."""
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "a", "b", "##b"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    settings = DatasetSettings(source="./t", packing="document", sequence_length=2)
    made = encoder(settings, tokenizer, 8)
    for text in ("a " + "b" * 300, "a " * 30 + "b" * 3000, ("b" * 90 + " ") * 9):
        own = made(text)
        assert list(own.ids[:2]) == tokenizer(text, add_special_tokens=False)["input_ids"][:2]
        assert own.start == (1,)


# --- Chats -------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "We."}]


def template(model, text):
    (model / "chat_template.jinja").write_text(text)


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        (tiny.CHAT_TEMPLATE, True),
        ("{% if false %}{{ bos_token }}{% endif %}" + PLAIN, False),
        ("<|bos|>" + PLAIN, True),
    ],
)  # fmt: skip
def test_whether_a_template_gives_a_bos_is_read_from_the_ids(model, tmp_path, text, begins):
    template(model, text)
    (sequence,), record, tokenizer = tokenized(
        model, tmp_path, "messages", [CHAT], packing="document"
    )
    wanted = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    assert sequence == wanted
    assert record["bos"] is begins is (sequence[0] == BOS)
    (sequence,), record, _ = tokenized(
        model, tmp_path, "messages", [CHAT], packing="document", bos="never"
    )
    assert sequence == wanted[begins:]
    assert record["bos"] is False


def test_chats_that_are_joined_keep_what_the_template_gave_each(model, tmp_path):
    sequences, _, tokenizer = tokenized(
        model, tmp_path, "messages", [CHAT] * 3, sequences=2, sequence_length=38
    )
    each = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    assert each[0] == BOS
    joined = [*each, EOS, *each, EOS, *each]
    rest = joined[38:]
    assert sequences == [joined[:38], (rest if rest[0] == BOS else [BOS, *rest])[:38]]


def test_todays_date_is_that_of_the_configuration_and_recorded(model, tmp_path):
    template(model, DATED)
    texts = []
    for date in ("2024-07-26", "2031-02-03"):
        (sequence,), record, tokenizer = tokenized(
            model, tmp_path, "messages", [CHAT], packing="document", date=date
        )
        texts.append(tokenizer.decode(sequence))
        assert record["template_date"] == date
    assert texts == ["26 July 2024Who?We.", "03 February 2031Who?We."]
    template(model, tiny.CHAT_TEMPLATE)
    _, record, _ = tokenized(model, tmp_path, "messages", [CHAT], packing="document")
    assert record["template_date"] is None


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (PARTS, [{"type": "text", "text": "Who"}, {"type": "text", "text": " are you?"}]),
        (PARTS, "Who are you?"),
        (tiny.CHAT_TEMPLATE, [{"type": "text", "text": "Who are you?"}]),
    ],
)
def test_content_is_rendered_in_the_form_that_the_template_reads(model, tmp_path, text, content):
    template(model, text)
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": "I am."}]
    (sequence,), _, tokenizer = tokenized(
        model, tmp_path, "messages", [chat], packing="document", bos="never"
    )
    shown = tokenizer.decode(sequence)
    assert shown.startswith("<|im_start|>user\nWho are you?<|im_end|>")
    assert "I am.<|im_end|>" in shown
    assert "type" not in shown


def test_a_template_that_reads_no_parts_is_refused(model, tmp_path):
    template(model, "{{ messages[0].content.text }}")
    chat = [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}]
    with pytest.raises(ValueError, match=r"row 1: message 1: .* renders no content that is a list"):
        tokenized(model, tmp_path, "messages", [chat], packing="document")


# --- The embedding's rows ------------------------------------------------------------------------


def test_an_end_of_text_token_without_an_embedding_is_refused_by_its_name(tmp_path):
    model = tiny.llama(tmp_path / "model", vocab_size=300)
    changed(model, lambda t: t.add_special_tokens({"eos_token": "<|end|>"}))
    number = load_tokenizer(model).eos_token_id
    config = json.loads((model / "config.json").read_text()) | {"vocab_size": number}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        tokenized(model, tmp_path, "text", [tiny.SENTENCES[0]], sequence_length=8)
    assert str(error.value) == (
        f"the tokenizer's end-of-text token has id {number}, and the model has {number} "
        f"embeddings, numbered from 0; dataset.packing: document needs none"
    )
    tokenized(model, tmp_path, "text", [tiny.SENTENCES[0]], packing="document")


def test_a_first_token_without_an_embedding_is_refused_by_its_name(model, tmp_path):
    tokenizer = load_tokenizer(model)
    with pytest.raises(ValueError, match="BOS token has id 0, and the model has 0 embeddings"):
        encoder(DatasetSettings(source="./t", bos="always"), tokenizer, 0)
    with pytest.raises(ValueError, match=r"first token has id 0, .* dataset.bos: never"):
        encoder(DatasetSettings(source="./t"), tokenizer, 0)


# --- The tokenizer's files -----------------------------------------------------------------------


def test_a_vocabulary_alone_is_a_tokenizer_and_counts(tmp_path, model):
    for path in model.glob("*token*"):
        path.unlink()
    config = json.loads((model / "config.json").read_text()) | {"model_type": "bert"}
    (model / "config.json").write_text(json.dumps(config))
    assert load_tokenizer(model) is None or (model / "chat_template.jinja").exists()
    (model / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\na\nb\n")
    assert load_tokenizer(model)("a b")["input_ids"] == [1, 5, 6, 2]
    before = tokenizer_fingerprint(model)
    (model / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\nb\na\n")
    assert tokenizer_fingerprint(model) != before


@pytest.mark.parametrize(
    ("name", "counts"),
    [("spiece.model", True), ("own_file.dat", True), ("tokenization_own.py", True),
     ("additional_chat_templates/rag.jinja", True), ("README.md", False),
     ("model-00001-of-00002.safetensors", False), (".gitattributes", False)],
)  # fmt: skip
def test_any_file_that_may_change_tokens_counts(model, name, counts):
    before = tokenizer_fingerprint(model)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("x")
    assert (tokenizer_fingerprint(model) != before) is counts


def test_the_files_of_all_tokenizers_of_transformers_are_known():
    root = Path(importlib.util.find_spec("transformers").origin).parent / "models"
    names = set()
    for path in root.glob("*/tokenization*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
            if named and getattr(node.targets[0], "id", "") == "VOCAB_FILES_NAMES":
                names |= {ast.literal_eval(value) for value in node.value.values
                          if isinstance(value, ast.Constant)}  # fmt: skip
    assert len(names) > 20
    assert [name for name in sorted(names) if not is_tokenizer_file(name)] == []


def test_the_report_names_what_was_read():
    reading = {
        "files": [{"name": "a.jsonl", "rows": 12, "empty_rows": 2}], "files_read": 1,
        "files_not_needed": 3, "skipped": {"LICENSE.txt": "about the dataset, no part of it"},
        "files_skipped": 1, "rows": 12, "empty_rows": 2,
    }  # fmt: skip
    tokens = {"reading": reading, "special_tokens": "auto", "special_tokens_in_text": 3}
    tokens |= {"bos": True, "start": ["<s>"], "sequences": 4, "sequences_with_start": 4}
    tokens |= {"source": "./x", "commit": None, "shortest": 8, "longest": 8, "documents": 5}
    tokens |= {"packing": "concat", "template_date": "2024-07-26"}
    model = {"source": "m", "commit": None, "architecture": "A", "layers": 2, "weight_bytes": 1}
    store = {"layer_groups": [[0, 1]], "dtype": "float32", "sites": [], "store": [], "layers": [0]}
    shown = dict(facts(model | {"fingerprint": "f"}, tokens,
                       store | {"sequence_shards": 1, "versions": {}}))  # fmt: skip
    assert shown["files read"] == "a.jsonl (12 rows, 2 empty); 3 more files not needed"
    assert shown["files skipped"] == "LICENSE.txt (about the dataset, no part of it)"
    assert shown["special tokens from the text"] == "3 tokens"
    assert shown["date in the chat template"] == "2024-07-26"
    assert shown["begin-of-sequence token"] == "at every sequence: <s>"


def test_special_tokens_are_all_that_are_marked_as_such(customised):
    assert special_ids(customised) == {0, 1, 2, 3, len(customised) - 1}
