"""Tests of damaged datasets and tokenizers, one of each kind, which the dataset stage refuses.

What single files say of themselves is in `test_data.py`; here the whole stage is refused, with
nothing left behind.
"""

import datetime
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from pipeline import Run
from refused import refused

from outlier_atlas.checkpoint.source import fetch
from outlier_atlas.data.prepare import tokenize_dataset

TEXT = json.dumps({"text": tiny.SENTENCES[0] * 9}) + "\n"
IDS = {"input_ids_column": "ids"}
CHAT = {"messages_column": "chat"}
MORE = {"sequences": 99}  # than the first document gives


def ids(*rows):
    return "".join(json.dumps({"ids": row}) + "\n" for row in rows)


def chat(*messages):
    return json.dumps({"chat": list(messages)}) + "\n"


def parquet(**columns):
    """Return the bytes of a Parquet file with these columns."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


WORDS = parquet(text=["word " * 200] * 50, other=list(range(50)))
NOT_UTF8 = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
SMALL = {"packing": "document", "sequences": 1}

FILES = {
    "text: not UTF-8 far in": ("t.txt", b"a\n" * 9 + b"\x80", {}, "at byte 18 (line 10); convert"),
    "text: UTF-16": ("t.txt", "text".encode("utf-16"), {}, "t.txt: not UTF-8, at byte 0 (line 1)"),
    "text: empty": ("t.txt", b"", {}, "empty; 1 rows and nothing in them"),
    "text: chats wanted": ("t.txt", b"x", CHAT, "a .txt file holds text only, not messages"),
    "ending: none": ("t", b"x", {}, "ends in 'nothing'; known endings are .csv, .jsonl"),
    "ending: .json": ("t.json", b"{}", {}, "ends in '.json'; known endings are .csv"),
    "ending: .gz": ("t.jsonl.gz", b"\x1f\x8b", {}, "ends in '.gz'; known endings are .csv"),
    "ending: .pkl": ("t.pkl", b"\x80\x04N.", {}, "ends in '.pkl'; known endings are .csv"),
    "ending: .npy": ("t.npy", b"\x93NUMPY", {}, "ends in '.npy'; known endings are .csv"),
    "jsonl: cut in line 2": ("t.jsonl", TEXT + TEXT[:30], MORE, "t.jsonl:2: not a JSON line"),
    "jsonl: one array": ("t.jsonl", "[\n" + TEXT, {}, "t.jsonl:1: not a JSON line"),
    "jsonl: a word": ("t.jsonl", '"text"\n', {}, "t.jsonl:1: a JSON object is needed, with key 't"),
    "jsonl: another column": ("t.jsonl", TEXT, {"text_column": "body"}, "no column 'body'; there"),
    "jsonl: lost in line 2": ("t.jsonl", TEXT + '{"x": 1}\n', MORE, "t.jsonl:2: there is no colum"),
    "jsonl: a number": ("t.jsonl", '{"text": 3.5}\n', {}, "row 1: text is needed, not a number"),
    "jsonl: a truth": ("t.jsonl", '{"text": true}\n', {}, "row 1: text is needed, not true or fal"),
    "jsonl: a list": ("t.jsonl", '{"text": ["a"]}\n', {}, "row 1: text is needed, not a list"),
    "jsonl: an object": ("t.jsonl", '{"text": {"a": 1}}\n', {}, "text is needed, not an object"),
    "jsonl: half a pair": ("t.jsonl", '{"text": "\\udc80"}\n', {}, r"'\udc80' is half of a surrog"),
    "jsonl: all null": ("t.jsonl", '{"text": null}\n' * 3, {}, "empty; 3 rows and nothing in them"),
    "jsonl: NaN ids": ("t.jsonl", '{"ids": [NaN]}\n', IDS, "token ids must be whole numbers"),
    "jsonl: a huge number": ("t.jsonl", '{"text": ' + "9" * 5000 + "}\n", {}, "not a JSON line"),
    "csv: no header": ("t.csv", "a,b\nc,d\n", {}, "no column 'text'; there are 'a', 'b'"),
    "csv: another column": ("t.csv", "text\nx\n", {"text_column": "t"}, "no column 't'; there are"),
    "csv: semicolons": ("t.csv", "id;text\n1;x\n", {}, "no column 'text'; there are 'id;text'"),
    "csv: an open quote": ("t.csv", 'text\n"x\n', {}, "t.csv:2: not a CSV line (unexpected end"),
    "csv: text behind a quote": ("t.csv", 'text\n"x"y\n', {}, "t.csv:2: not a CSV line"),
    "csv: not UTF-8": ("t.csv", b"text\n\xe9\n", {}, "t.csv: not UTF-8, at byte 5 (line 2)"),
    "csv: ids": ("t.csv", "ids\n1 2 3\n", IDS, "a list is needed for input_ids, not text"),
    "csv: more fields": (
        "t.csv", 'text,n\na,1\n"b\nc",2\nd,e,3\n', MORE, "t.csv:5: 3 fields, and the header has 2",
    ),
    "csv: fewer fields": ("t.csv", "n,text\n1,a\n2\n", MORE, "t.csv:3: 1 fields, and the header"),
    "csv: equal headers": ("t.csv", "text,text\na,b\n", {}, "there are 2 columns 'text'"),
    "csv: UTF-16 without its mark": (
        "t.csv", "text\nhello\n".encode("utf-16-le"), {}, "t.csv: NUL at byte 1 (line 1): UTF-16",
    ),
    "text: Git LFS": (
        "t.txt", b"version https://git-lfs.github.com/spec/v1\n", {}, "a Git LFS pointer, not the",
    ),
    "jsonl: a key twice": (
        "t.jsonl", '{"text": "a", "text": "b"}\n', {}, "t.jsonl:1: key 'text' appears twice",
    ),
    "csv: escapes in a header": ("t.csv", "\x1b[2J\nx\n", {}, r"there are '\x1b[2J'"),
    "csv: a thousand columns": ("t.csv", ",".join(map(str, range(1000))), {}, "there are '0', '1'"),
    "parquet: empty": ("t.parquet", b"", {}, "t.parquet: cannot be read as Parquet"),
    "parquet: cut": ("t.parquet", WORDS[:-20], {}, "t.parquet: cannot be read as Parquet"),
    "parquet: a hole": ("t.parquet", WORDS[:4] + bytes(90) + WORDS[94:], {}, "cannot be read as P"),
    "parquet: another column": ("t.parquet", WORDS, {"text_column": "b"}, "no column 'b'; there a"),
    "parquet: numbers": ("t.parquet", WORDS, {"text_column": "other"}, "text is needed, not a num"),
    "parquet: bytes": ("t.parquet", parquet(text=[b"\xff"]), {}, "text is needed, not bytes"),
    "parquet: no rows": ("t.parquet", parquet(text=pa.array([], pa.string())), {}, "empty; 0 rows"),
    "parquet: bad text": (
        "t.parquet",
        parquet(text=NOT_UTF8),
        {},
        "t.parquet, column 'text', row 1: text that is not UTF-8",
    ),
    "ids: negative": ("t.jsonl", ids([4, -1]), IDS, "token id -1 is not in the model's vocabulary"),
    "ids: beyond": ("t.jsonl", ids([4, 320]), IDS, "token id 320 is not in the model's vocabulary"),
    "ids: beyond in row 3": (
        "t.jsonl", ids([4, 5], [], [6, 7, -5, 320]), IDS | MORE,
        "t.jsonl, column 'ids', row 3: token id -5 is not in the model's vocabulary of 320 (tok",
    ),
    "ids: a fraction in row 2": (
        "t.jsonl", ids([4, 5], [6, 5.5]), IDS | MORE,
        "t.jsonl, column 'ids', row 2: token ids must be whole numbers, and number 2 of them is 5",
    ),
    "parquet: bad text far in": (
        "t.parquet", parquet(text=pa.concat_arrays([pa.array(["word"] * 300), NOT_UTF8])), MORE,
        "t.parquet, column 'text', row 301: text that is not UTF-8",
    ),
    "ids: huge": ("t.jsonl", ids([10**30]), IDS, "is not in the model's vocabulary of 320"),
    "ids: fractions": ("t.jsonl", ids([4.0, 5.5]), IDS, "token ids must be whole numbers"),
    "ids: truths": ("t.jsonl", ids([True]), IDS, "token ids must be whole numbers"),
    "ids: nested": ("t.jsonl", ids([[4, 5], [6]]), IDS, "token ids must be whole numbers"),
    "ids: text": ("t.jsonl", ids("4 5 6"), IDS, "a list is needed for input_ids, not text"),
    "ids: null among them": ("t.jsonl", ids([4, None]), IDS, "token ids must be whole numbers"),
    "ids: one number": ("t.jsonl", ids(7), IDS, "a list is needed for input_ids, not a number"),
    "ids: too few": ("t.jsonl", ids([4, 5, 6]), IDS, "too little text: 3 tokens in 1 documents; 3"),
    "text: too little": ("t.jsonl", '{"text": "a"}\n', {}, "take fewer or shorter sequences, or m"),
    "documents: too few": (
        "t.jsonl", TEXT, {"packing": "document", "sequences": 2},
        "dataset.sequences = 2 are needed: take fewer sequences, or more text",
    ),
    "documents: too short": (
        "t.jsonl", TEXT, {"packing": "document", "min_length": 16, "sequences": 5},
        "1 documents have dataset.min_length = 16 tokens or more",
    ),
    "chats: text": ("t.jsonl", '{"chat": "hello"}\n', CHAT, "a list is needed for messages, not t"),
    "chats: no role": ("t.jsonl", chat({"content": "x"}), CHAT, "needs `role` and `content`"),
    "chats: words": ("t.jsonl", chat("hello"), CHAT, "each message needs `role` and `content`"),
    "chats: a time": (
        "t.parquet",
        parquet(chat=[[{"role": "user", "content": "x", "at": datetime.datetime(2024, 1, 2)}]]),
        CHAT | SMALL, "row 1: [0].at is a datetime, and chats are JSON",
    ),
    "chats: bytes": (
        "t.parquet", parquet(chat=[[{"role": "user", "content": b"x"}]]), CHAT | SMALL,
        "row 1: [0].content is a bytes, and chats are JSON",
    ),
    "chats: a picture": (
        "t.jsonl", chat({"role": "user", "content": [{"type": "image", "url": "x"}]}),
        CHAT | SMALL, "row 1: message 1: a part of its content is 'image' instead of text",
    ),
    "chats: parts that the template does not join": (
        "t.jsonl",
        chat({"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}),
        CHAT | SMALL, "row 1: the chat template takes a message's content as text, and it is a",
    ),
    "chats: half a pair": (
        "t.jsonl", chat({"role": "user", "content": "\udc80"}), CHAT | SMALL,
        r"'\udc80' is half of a surrogate pair",
    ),
}  # fmt: skip


def edited(name, change):
    def damage(folder):
        held = json.loads((folder / name).read_text())
        change(held)
        (folder / name).write_text(json.dumps(held))

    return damage


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def without_tokenizer(folder):
    for path in [*folder.glob("*token*"), *folder.glob("*.jinja")]:
        path.unlink()


def without_template(folder):
    (folder / "chat_template.jinja").unlink()


def shifted(held):
    held["model"]["vocab"] = {word: i + 1000 for word, i in held["model"]["vocab"].items()}


def without_end(folder):
    edited("tokenizer_config.json", lambda held: held.pop("eos_token"))(folder)


RIGHT = chat({"role": "user", "content": "Who?"})
TOKENIZERS = {
    "cut": (written("tokenizer.json", b'{"model": '), TEXT, {}, "its tokenizer cannot be read ("),
    "a list": (written("tokenizer.json", b"[]"), TEXT, {}, "its tokenizer cannot be read ("),
    "empty": (written("tokenizer.json", b""), TEXT, {}, "its tokenizer cannot be read (Expecting"),
    "not UTF-8": (written("tokenizer.json", b"\xff"), TEXT, {}, "its tokenizer cannot be read ('u"),
    "no model": (edited("tokenizer.json", lambda t: t.pop("model")), TEXT, {}, "(Model missing"),
    "unknown model": (
        edited("tokenizer.json", lambda t: t["model"].update(type="Nope")), TEXT, {},
        "its tokenizer cannot be read (data did not match",
    ),
    "settings: cut": (written("tokenizer_config.json", b"{"), TEXT, {}, "tokenizer cannot be read"),
    "settings: a list": (written("tokenizer_config.json", b"[]"), TEXT, {}, "cannot be read ('lis"),
    "code": (
        edited("tokenizer_config.json", lambda t: t.update(
            tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})),
        TEXT, {}, "the tokenizer needs Python code that comes with it",
    ),
    "another model's": (edited("tokenizer.json", shifted), TEXT, {}, "token has id 1001, and the"),
    "missing": (without_tokenizer, TEXT, {}, "the model comes without a tokenizer, and column 'te"),
    "no template": (without_template, RIGHT, CHAT, "no chat template, and dataset.messages_column"),
    "template: broken": (
        written("chat_template.jinja", b"{% for %}"), RIGHT, CHAT | SMALL,
        "the chat template refuses the messages (",
    ),
    "template: raises": (
        written("chat_template.jinja", b"{{ raise_exception('roles must alternate') }}"),
        RIGHT, CHAT | SMALL, "the chat template refuses the messages (roles must alternate)",
    ),
    "template: sandboxed": (
        written("chat_template.jinja", b"{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        RIGHT, CHAT | SMALL, "the chat template refuses the messages (",
    ),
    "no end of text": (without_end, TEXT, {}, "the tokenizer has no end-of-text token to join"),
}  # fmt: skip


def tokenized(model, source, tmp_path, settings):
    """Run the dataset stage, which must refuse its input; return its message."""
    dataset = {"source": str(source), "sequences": 2, "sequence_length": 16} | settings
    run = Run(tmp_path, {"model": {"source": str(model)}, "dataset": dataset})
    fetch(run.settings.model, run.resources, run.model_record)
    said = refused(
        lambda: tokenize_dataset(
            run.settings.dataset, run.model_record, run.resources, False, None, run.tokens,
            run.tokens_record,
        ),
        tmp_path,
    )  # fmt: skip
    assert not run.tokens.exists()
    return said


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_no_token_store_is_left(name, llama, tmp_path):
    file, content, settings, sentence = FILES[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = tokenized(llama, path, tmp_path, settings)
    assert sentence in said
    assert "t" in said


@pytest.mark.parametrize("more", [[], ["b.jsonl"]])
@pytest.mark.parametrize("shuffle", [{}, {"shuffle_seed": 1}])
def test_a_row_of_a_folder_is_named_with_its_file(more, shuffle, llama, tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for name in more:
        (folder / name).write_text(ids([4, 5]))
    (folder / "deep" / "z.jsonl").write_text(ids([4, 5], [6, 320]))
    said = tokenized(llama, folder, tmp_path, IDS | MORE | shuffle)
    assert said.startswith(f"{folder}/deep/z.jsonl, column 'ids', row 2: token id 320 is not in")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_damaged_tokenizer_is_said_to_be(name, llama, tmp_path):
    damage, content, settings, sentence = TOKENIZERS[name]
    shutil.copytree(llama, tmp_path / "model")
    damage(tmp_path / "model")
    (tmp_path / "t.jsonl").write_text(content)
    assert sentence in tokenized(tmp_path / "model", tmp_path / "t.jsonl", tmp_path, settings)


def _folder_of_nothing(path: Path) -> None:
    path.mkdir()
    (path / "notes.md").write_text("not data")


def _folder_in_place_of_a_file(path: Path) -> None:
    (path / "a.jsonl").mkdir(parents=True)


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.symlink_to("/nowhere.jsonl"), "a broken link"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    ],
)
def test_what_is_no_regular_file_is_refused_and_never_waited_for(
    make, sentence, folder, llama, tmp_path
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text(TEXT)
    make(tmp_path / "data" / "b.jsonl")
    source = tmp_path / "data" if folder else tmp_path / "data" / "b.jsonl"
    said = tokenized(llama, source, tmp_path, {})
    assert said.startswith(f"{tmp_path / 'data' / 'b.jsonl'}: {sentence}")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "no such file or folder"),
        (_folder_of_nothing, "the folder holds no file that ends in .csv, .jsonl, .parquet, .txt"),
        (_folder_in_place_of_a_file, "the folder holds no file that ends in"),
    ],
)
def test_what_is_not_there_is_said(make, sentence, llama, tmp_path):
    make(tmp_path / "data")
    said = tokenized(llama, tmp_path / "data", tmp_path, {})
    assert said.startswith(f"dataset.source = {str(tmp_path / 'data')!r}: ")
    assert sentence in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(llama, tmp_path):
    (tmp_path / "t.txt").write_text("text")
    (tmp_path / "t.txt").chmod(0)
    assert "t.txt: Permission denied" in tokenized(llama, tmp_path / "t.txt", tmp_path, {})
