"""Tests of the way from documents to tokens: files, encoding, packing and the token store."""

import json
import random
import shutil
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from outlier_atlas.checkpoint.source import fetch, load_tokenizer
from outlier_atlas.data import encoding
from outlier_atlas.data.corpus import documents, shuffled
from outlier_atlas.data.packing import Document, Packing, PackingCounts, pack
from outlier_atlas.data.prepare import tokenize_dataset
from outlier_atlas.data.reading import Reading
from outlier_atlas.data.tokens import TokenStore, write_tokens
from outlier_atlas.files import read_record
from outlier_atlas.settings.dataset import DatasetSettings
from outlier_atlas.settings.model import ModelSettings

BOS, EOS, IM_START, IM_END = range(4)


def read(source, **settings):
    settings = DatasetSettings(source=str(source), **settings)
    return [value for _, value in documents(settings, source, None, Reading())]


# --- Files -------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_its_documents_in_order(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfplain\r\ntext\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two \\ud83d\\ude42"}\n')
    (tmp_path / "c.csv").write_bytes(b'\xef\xbb\xbfid,text\n1,"three, with\nbreak"\n2,four\n')
    (tmp_path / "sub").mkdir()
    pq.write_table(pa.table({"text": ["five", "six"]}), tmp_path / "sub" / "d.parquet")
    (tmp_path / "notes.md").write_text("not data")
    assert read(tmp_path, files=["*.jsonl", "*.txt", "**/*.csv", "sub/*"]) == [
        "one", "two 🙂", "plain\r\ntext\n", "three, with\nbreak", "four", "five", "six",
    ]  # fmt: skip
    assert read(tmp_path / "c.csv", text_column="id") == ["1", "2"]


def test_empty_documents_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": null}\n{"text": "x"}\n')
    assert read(tmp_path / "a.jsonl") == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "settings", "sentence"),
    [
        ("a.txt", b"good\nbad \xff byte", {}, "a.txt: not UTF-8, at byte 9 (line 2); convert it"),
        ("a.jsonl", b'{"text": "x"}\n{"tex', {}, "a.jsonl:2: not a JSON line"),
        ("a.jsonl", b"[1]\n", {}, "a.jsonl:1: a JSON object is needed, with key 'text'"),
        ("a.jsonl", b'{"body": "x"}\n', {}, "a.jsonl:1: there is no column 'text'; there are"),
        ("a.jsonl", b'{"text": 7}\n', {}, "row 1: text is needed, not a number"),
        ("a.jsonl", b'{"text": "\xe9"}\n', {}, "a.jsonl: not UTF-8, at byte 10 (line 1)"),
        ("a.jsonl", b"[" * 100_000, {}, "a.jsonl:1: not a JSON line"),
        ("a.jsonl", b'{"text": ""}\n', {}, "column 'text': empty; 1 rows and nothing in them"),
        ("a.jsonl", b"", {}, "column 'text': empty; 0 rows"),
        ("a.csv", b"body\nx\n", {}, "a.csv: there is no column 'text'; its columns are 'body'"),
        ("a.csv", b"", {}, "a.csv: there is no column 'text'; its columns are none"),
        ("a.csv", b'text\n"open', {}, "a.csv:2: not a CSV line"),
        ("a.parquet", b"PAR1 no", {}, "a.parquet: cannot be read as Parquet"),
        ("a.txt", b"x", {"input_ids_column": "ids"}, "a .txt file holds text only, not input_ids"),
        ("a.jsonl", b'{"i": "x"}', {"input_ids_column": "i"}, "a list is needed for input_ids"),
        ("a.jsonl", b'{"i": [1.5]}', {"input_ids_column": "i"}, "must be whole numbers"),
        ("a.jsonl", b'{"i": [true]}', {"input_ids_column": "i"}, "must be whole numbers"),
        ("a.jsonl", b'{"m": ["x"]}', {"messages_column": "m"}, "needs `role` and `content`"),
        ("a.tsv", b"x", {}, "ends in '.tsv'; known are .csv, .jsonl, .parquet, .txt"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, content, settings, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        read(tmp_path / name, **settings)
    assert sentence in str(error.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        read(tmp_path / "nothing.txt")
    with pytest.raises(ValueError, match=r"holds no file that ends in \.csv"):
        read(tmp_path)


def test_a_shuffle_is_a_permutation_that_its_seed_decides():
    values = [{"deep": [i, "ü"]} for i in range(50)]
    first, again, other = (list(shuffled(iter(values), seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != values
    assert other != first
    assert sorted(v["deep"][0] for v in first) == list(range(50))


# --- Packing -----------------------------------------------------------------------------------

tokens = st.integers(4, 9)
texts = st.lists(st.lists(tokens, max_size=8), max_size=12)


def packed(documents, bos=None, **packing):
    """Return all sequences that can be made of the documents."""
    used = PackingCounts()
    documents = [Document(ids, () if bos is None else (bos,)) for ids in documents]
    for count in range(200, 0, -1):
        try:
            return list(pack(documents, Packing(sequences=count, **packing), used)), used
        except ValueError:
            used = PackingCounts()
    return [], used


@hypothesis_settings(deadline=None)
@given(texts, st.integers(2, 7), st.booleans())
def test_concat_loses_no_token_and_cuts_full_sequences(documents, length, with_bos):
    bos = BOS if with_bos else None
    sequences, _ = packed(documents, bos, kind="concat", length=length, separator=EOS)
    assert all(len(sequence) == length for sequence in sequences)
    assert all(sequence[0] == BOS for sequence in sequences if with_bos)
    filled = [document for document in documents if document]
    joined = list(chain.from_iterable([*document, EOS] for document in filled))[:-1]
    body = list(chain.from_iterable(s[with_bos:] for s in sequences))
    assert body == joined[: len(body)]
    assert len(joined) - len(body) < length


@hypothesis_settings(deadline=None)
@given(texts, st.integers(2, 7), st.integers(1, 5), st.booleans())
def test_document_keeps_the_start_of_each_long_enough_document(documents, length, least, with_bos):
    bos = BOS if with_bos else None
    sequences, _ = packed(documents, bos, kind="document", length=length, min_length=least)
    start = [BOS] if with_bos else []
    assert sequences == [([*start, *d])[:length] for d in documents if len(d) >= least]


def test_no_more_documents_are_read_than_are_needed():
    read_so_far = []
    endless = (read_so_far.append(i) or Document([4] * 10) for i in range(10**9))
    packing = Packing(kind="concat", sequences=2, length=16, separator=EOS)
    assert len(list(pack(endless, packing, PackingCounts()))) == 2
    assert len(read_so_far) <= 4


@pytest.mark.parametrize(
    ("packing", "sentence"),
    [
        (
            {"kind": "concat", "length": 16, "separator": EOS},
            "too little text: 20 tokens in 2 documents; 48 tokens are needed "
            "(dataset.sequences = 3 x dataset.sequence_length = 16)",
        ),
        (
            {"kind": "document", "length": 16, "min_length": 11},
            "too little text: 0 documents have dataset.min_length = 11 tokens or more "
            "(20 tokens in 2 documents), and dataset.sequences = 3 are needed",
        ),
    ],
)
def test_too_little_text_says_how_much_there_is_and_is_needed(packing, sentence):
    with pytest.raises(ValueError) as error:
        list(pack([Document([4] * 10)] * 2, Packing(sequences=3, **packing), PackingCounts()))
    assert sentence in str(error.value)


# --- The whole stage ---------------------------------------------------------------------------


@pytest.fixture
def make(llama, tmp_path):
    """A function that tokenizes a dataset with the tiny model's tokenizer, or another one."""

    def run(source, tokenizer=None, **settings):
        model = llama
        if tokenizer is not None:
            model = tmp_path / "model"
            shutil.copytree(llama, model)
            tiny.tokenizer(model, **tokenizer)
        record, output = tmp_path / "model.json", tmp_path / "tokens.parquet"
        fetch(ModelSettings(source=str(model)), tmp_path, record)
        settings = DatasetSettings(**{"source": str(source), "sequences": 1, **settings})
        tokens_record = tmp_path / "tokens.json"
        tokenize_dataset(settings, record, tmp_path, False, None, output, tokens_record)
        store = TokenStore.open(output)
        sequences = [store.sequence(i).tolist() for i in range(store.sequences)]
        return sequences, read_record(tokens_record), store, load_tokenizer(model)

    return run


def jsonl(path, column, values):
    path.write_text("".join(json.dumps({column: value}) + "\n" for value in values))
    return path


@pytest.mark.parametrize(
    ("policy", "tokenizer", "starts_with_bos"),
    [
        ("auto", {"adds_bos": True}, True),
        ("auto", {"adds_bos": False}, False),
        ("auto", {"adds_bos": False, "bos": False}, False),
        ("always", {"adds_bos": False}, True),
        ("never", {"adds_bos": True}, False),
    ],
)
@pytest.mark.parametrize("packing", ["concat", "document"])
def test_bos_policies(make, tmp_path, policy, tokenizer, starts_with_bos, packing):
    source = jsonl(tmp_path / "a.jsonl", "text", tiny.SENTENCES)
    sequences, record, _, tokenizer = make(
        source, tokenizer, bos=policy, packing=packing, sequences=3, sequence_length=16
    )
    assert [sequence[0] == BOS for sequence in sequences] == [starts_with_bos] * 3
    assert record["bos"] is starts_with_bos
    ids = [tokenizer(s, add_special_tokens=False)["input_ids"] for s in tiny.SENTENCES]
    if packing == "concat":
        joined = [*ids[0], EOS, *ids[1], EOS, *ids[2]]
        body = [t for s in sequences for t in s[starts_with_bos:]]
        assert body == joined[: len(body)]
    else:
        assert sequences == [([BOS] * starts_with_bos + own)[:16] for own in ids]


def test_bos_that_is_wanted_and_missing_is_said(make, tmp_path):
    source = jsonl(tmp_path / "a.jsonl", "text", tiny.SENTENCES)
    with pytest.raises(ValueError, match="the tokenizer has no BOS token; take auto"):
        make(source, {"adds_bos": False, "bos": False}, bos="always", sequence_length=4)


CHAT = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "We."},
]


@pytest.mark.parametrize(("policy", "count"), [("auto", 1), ("always", 1), ("never", 0)])
def test_a_chat_has_the_templates_bos_and_no_second_one(make, tmp_path, policy, count):
    source = jsonl(tmp_path / "a.jsonl", "chat", [CHAT])
    (sequence,), _, _, tokenizer = make(
        source, bos=policy, messages_column="chat", packing="document"
    )
    assert sequence.count(BOS) == count
    wanted = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    assert sequence == wanted[1 - count :]
    assert [sequence.count(t) for t in (IM_START, IM_END)] == [2, 2]


def test_special_tokens_in_a_text_are_cut_into_pieces_where_that_is_asked_for(make, tmp_path):
    hostile = "before <|im_end|><|eos|><|bos|> after"
    source = jsonl(tmp_path / "a.jsonl", "text", [hostile])
    (sequence,), record, store, tokenizer = make(
        source, packing="document", bos="never", special_tokens="split"
    )
    assert record["special_tokens_in_text"] == 0
    assert not {BOS, EOS, IM_START, IM_END} & set(sequence)
    assert tokenizer.decode(sequence) == hostile
    assert "".join(store.window(0, 0, 99)) == hostile


def test_ready_ids_go_in_as_they_are(make, tmp_path):
    ids = [[7, 3, 3, 299], [0, 5, 9, 1]]
    source = jsonl(tmp_path / "a.jsonl", "ids", ids)
    sequences, record, _, _ = make(source, input_ids_column="ids", packing="document", sequences=2)
    assert sequences == ids
    assert record["bos"] is False


def test_an_id_outside_of_the_vocabulary_is_refused(make, tmp_path):
    source = jsonl(tmp_path / "a.jsonl", "ids", [[4, 320]])
    with pytest.raises(ValueError, match="token id 320 is not in the model's vocabulary of 320"):
        make(source, input_ids_column="ids", packing="document")


def test_a_model_without_tokenizer_takes_ready_ids_only(llama, tmp_path):
    model = tmp_path / "bare"
    shutil.copytree(llama, model)
    for path in model.glob("*token*"):
        path.unlink()
    (model / "chat_template.jinja").unlink(missing_ok=True)
    record = tmp_path / "model.json"
    fetch(ModelSettings(source=str(model)), tmp_path, record)
    source = jsonl(tmp_path / "a.jsonl", "x", [[4, 5, 6]])

    def tokenize(**settings):
        settings = DatasetSettings(source=str(source), sequences=1, packing="document", **settings)
        output = tmp_path / "tokens.parquet"
        tokenize_dataset(settings, record, tmp_path, False, None, output, tmp_path / "tokens.json")
        return TokenStore.open(output)

    store = tokenize(input_ids_column="x")
    assert store.token_ids.tolist() == [4, 5, 6]
    assert store.token_text([1]) == [""]
    with pytest.raises(ValueError, match="comes without a tokenizer"):
        tokenize(text_column="x")


# --- Tokens and their text ---------------------------------------------------------------------


def test_the_parts_of_a_text_join_to_the_text(make, tmp_path):
    text = " ".join(tiny.SENTENCES)
    source = jsonl(tmp_path / "a.jsonl", "text", [text])
    (sequence,), _, store, _ = make(source, packing="document", bos="never")
    before, own, after = store.window(20, 1000, 1000)
    assert before + own + after == text
    before, own, after = store.window(20, 2, 1)
    assert f"{before}{own}{after}" in text
    assert len(sequence) > 50


def test_a_tokens_own_text_keeps_spaces_names_special_ones_and_shows_bytes(llama):
    tokenizer = load_tokenizer(llama)
    text = encoding.token_text(tokenizer)
    assert text(EOS) == "<|eos|>"
    ids = tokenizer("the people 東", add_special_tokens=False)["input_ids"]
    shown = [text(i) for i in ids]
    assert "".join(shown[:-3]) == "the people "
    assert shown[-3:] == ["<0xE6>", "<0x9D>", "<0xB1>"]
    assert text(10**6) == "<1000000>"


def test_own_text_of_a_sentencepiece_tokenizer_keeps_its_spaces():
    vocabulary = {"<unk>": 0, "<s>": 1, "▁": 2, "▁the": 3, "t": 4, "e": 5, "a": 6, "▁a": 7}
    vocabulary |= {f"<0x{byte:02X}>": 8 + byte for byte in range(256)}
    model = models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    text = encoding.token_text(tokenizer)
    assert [text(i) for i in (1, 3, 4, 7, 8 + 0xE2)] == ["<s>", " the", "t", " a", "<0xE2>"]


@pytest.mark.parametrize("tokens_in_all", [5, 70_000, 140_000])
def test_the_token_store_gives_back_what_was_written(tmp_path, tokens_in_all):
    draw = random.Random(0)
    sequences = []
    while sum(map(len, sequences)) < tokens_in_all:
        sequences.append([draw.randrange(9) for _ in range(draw.randrange(1, 40_000))])
    path = tmp_path / "tokens.parquet"
    summary = write_tokens(path, iter(sequences), lambda t: f"t{t}", lambda s: [f"{i}," for i in s])
    store = TokenStore.open(path)
    assert [store.sequence(i).tolist() for i in range(store.sequences)] == sequences
    assert summary.tokens == store.tokens == sum(map(len, sequences))
    lengths = [len(sequence) for sequence in sequences]
    assert (summary.shortest, summary.longest) == (min(lengths), max(lengths))
    where = np.array(sorted(draw.randrange(store.tokens) for _ in range(20)))
    assert store.token_text(where) == [f"t{store.token_ids[i]}" for i in where]
    last = store.tokens - 1
    assert store.window(last, 0, 50) == ("", f"{store.token_ids[last]},", "")
    starts = store.sequence_starts.tolist()
    assert store.window(starts[-2], 9, 0)[0] == ""


def test_equal_tokens_have_equal_fingerprints_and_others_have_not(tmp_path):
    def fingerprint(sequences):
        own = [""]
        return write_tokens(
            tmp_path / "t.parquet", sequences, lambda _: "", lambda s: own * len(s)
        ).fingerprint

    assert fingerprint([[1, 2], [3]]) == fingerprint([[1, 2], [3]])
    others = [[[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]], [[1, 2], [4]]]
    assert len({fingerprint(sequences) for sequences in others}) == 4


def test_a_damaged_token_store_says_what_to_do(tmp_path):
    path = tmp_path / "tokens.parquet"
    path.write_bytes(b"PAR1 and nothing")
    with pytest.raises(ValueError, match=r"token store cannot be read.*run again"):
        TokenStore.open(path)
