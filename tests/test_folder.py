"""Tests of the selection of a dataset's files in a folder, compared with `datasets`."""

import os

import pytest
from datasets import load_dataset_builder
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from outlier_atlas.data import folder
from outlier_atlas.data.corpus import documents
from outlier_atlas.data.reading import Reading
from outlier_atlas.settings.dataset import DatasetSettings

ROW = '{"text": "x"}\n'
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: [b/*.jsonl, "a/**"]
  - split: test
    path: c.jsonl
- config_name: other
  data_files: d-*.jsonl
- config_name: within
  data_dir: e
---
text
"""

FOLDERS = {
    "one": ["a.jsonl"],
    "hidden": ["a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", ".b.jsonl", "__x__/c.jsonl"],
    "splits in names": ["test.jsonl", "train.jsonl", "dev-1.jsonl", "other.jsonl"],
    "words within": ["latest.jsonl", "trainer.jsonl", "my_train_0.jsonl", "x.test.jsonl"],
    "splits in folders": ["train/b.jsonl", "train/a.jsonl", "test/train.jsonl", "x.jsonl"],
    "folders by a word": ["my-eval/a.jsonl", "training 2/b/c.jsonl"],
    "sharded": [
        "data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl",
        "data/odd-00000-of-00001.jsonl", "data/x.jsonl", "test.jsonl",
    ],
    "kinds": ["a.jsonl", "b.jsonl", "c.csv", "d.txt", "README.md", "config.json"],
    "a draw": ["a.jsonl", "b.csv", "c.txt"],
    "a draw with Parquet": ["a.jsonl", "b.parquet"],
    "only test": ["test.jsonl", "x.jsonl"],
    "order": ["b/c.jsonl", "b.jsonl", "b-c.jsonl", "a10.jsonl", "a9.jsonl"],
    "card": ["README.md", "b/1.jsonl", "a/1/2.jsonl", "c.jsonl", "d-1.jsonl", "e/test.jsonl"],
}  # fmt: skip


def written(path, names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(CARD if name == "README.md" and "c.jsonl" in names else ROW)
    return path


def of_datasets(path, subset, split):
    """Return the files that `datasets` selects, relative to the folder."""
    held = load_dataset_builder(str(path), subset).config.data_files
    return [os.path.relpath(file, path) for file in dict.fromkeys(held[split])]


def ours(path, subset=None, split="train", **more):
    found = folder.find(DatasetSettings(source=str(path), subset=subset, split=split, **more))
    return [file.relative_to(path).as_posix() for file in found.files], dict(found.skipped)


def agree(path, subset=None):
    for split in ("train", "test", "validation", "odd"):
        try:
            wanted = of_datasets(path, subset, split)
        except (KeyError, FileNotFoundError):
            with pytest.raises(ValueError, match=r"there is no split|holds no file"):
                ours(path, subset, split)
        else:
            assert ours(path, subset, split)[0] == wanted, split


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_means_what_it_means_to_datasets(name, tmp_path):
    agree(written(tmp_path, FOLDERS[name]))


@pytest.mark.parametrize("subset", ["default", "other", "within"])
def test_the_card_of_a_dataset_names_its_subsets(subset, tmp_path):
    agree(written(tmp_path, FOLDERS["card"]), subset)
    with pytest.raises(ValueError, match="names the subsets default, other, within: take one"):
        ours(tmp_path, "none")


parts = st.sampled_from(
    ["train", "test", "a", "b", "eval-1", ".h", "__c__", "x_val", "data", "train-00000-of-00001"]
)
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)


@hypothesis_settings(deadline=None, max_examples=40)
@given(st.lists(paths, min_size=1, max_size=5, unique=True))
def test_any_folder_means_what_it_means_to_datasets(tmp_path_factory, names):
    agree(written(tmp_path_factory.mktemp("any"), [f"{name}.jsonl" for name in names]))


def test_what_is_no_data_is_named_with_the_reason(tmp_path):
    names = ["a.txt", "b.txt", "LICENSE.txt", "README.txt", ".ipynb_checkpoints/a.txt", "c.csv"]
    files, skipped = ours(written(tmp_path, names))
    assert files == ["a.txt", "b.txt"]
    assert skipped == {
        "LICENSE.txt": "about the dataset, not part of it",
        "README.txt": "about the dataset, not part of it",
        ".ipynb_checkpoints/a.txt": "hidden",
        "c.csv": "another kind of file than .txt",
    }


def test_a_link_to_a_folder_is_not_followed_and_named(tmp_path):
    written(tmp_path / "other", ["z.jsonl"])
    path = written(tmp_path / "data", ["a.jsonl"])
    (path / "link").symlink_to(tmp_path / "other")
    (path / "b.jsonl").symlink_to(tmp_path / "other" / "z.jsonl")
    agree(path)
    assert ours(path) == (["a.jsonl", "b.jsonl"], {"link/": "a link to a folder"})


def test_a_file_that_the_card_names_and_that_is_missing_is_said(tmp_path):
    card = "---\nconfigs:\n- config_name: en\n  data_files: [a.jsonl, b.jsonl]\n---\n"
    (written(tmp_path, ["a.jsonl"]) / "README.md").write_text(card)
    with pytest.raises(
        ValueError, match=r"its README.md names 'b.jsonl', and the folder has no such file"
    ):
        ours(tmp_path)


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        ("---\nconfigs: [\n---\n", "its YAML cannot be read"),
        ("---\nconfigs: 5\n---\n", "must be a list of named subsets"),
        ("---\nconfigs:\n- config_name: a\n  data_files: 5\n---\n", "must be paths, or items with"),
    ],
)
def test_a_card_that_cannot_be_read_is_said(card, sentence, tmp_path):
    (written(tmp_path, ["a.jsonl"]) / "README.md").write_text(card)
    with pytest.raises(ValueError, match=sentence):
        ours(tmp_path)


def test_the_user_names_files(tmp_path):
    written(tmp_path, ["b/1.jsonl", "b/2.csv", "a.jsonl", "LICENSE.txt", "test.jsonl"])
    assert ours(tmp_path, files=["test.jsonl", "b/*", "**/*.jsonl"])[0] == [
        "test.jsonl", "b/1.jsonl", "b/2.csv", "a.jsonl",
    ]  # fmt: skip
    assert ours(tmp_path, files=["LICENSE.txt"])[0] == ["LICENSE.txt"]
    with pytest.raises(ValueError, match=r"no file matches 'c\*'; correct the pattern"):
        ours(tmp_path, files=["a.jsonl", "c*"])


@pytest.mark.parametrize("pattern", ["/etc/passwd", "../x.txt", "a/../../x.txt", "~/x", "**x"])
def test_no_pattern_leads_out_of_the_folder(pattern):
    with pytest.raises(ValueError, match=r"leads out of the dataset|must be a path component"):
        DatasetSettings(source="./x", files=[pattern])


@pytest.mark.parametrize("name", ["b.jsonl.gz", "b.json"])
def test_what_datasets_would_read_and_we_cannot_is_refused(name, tmp_path):
    written(tmp_path, ["a.jsonl", name])
    with pytest.raises(ValueError, match=f"'{name}' is one of its files, and only"):
        ours(tmp_path)


def test_what_was_read_is_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": ""}\n{"text": null}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "y"}\n')
    (tmp_path / "c.jsonl").write_text('{"text": "z"}\n')
    reading = Reading()
    rows = documents(DatasetSettings(source=str(tmp_path)), tmp_path, None, reading)
    assert [next(rows)[1], next(rows)[1]] == ["x", "y"]
    assert reading.record() == {
        "files": [
            {"name": "a.jsonl", "rows": 3, "empty_rows": 2},
            {"name": "b.jsonl", "rows": 1, "empty_rows": 0},
        ],
        "files_read": 2, "files_not_needed": 1, "rows": 4, "empty_rows": 2, "skipped": {},
        "files_skipped": 0,
    }  # fmt: skip


def test_text_is_shuffled_by_its_seed(tmp_path):
    for name in "ab":
        rows = "".join(f'{{"text": "{name}{i}"}}\n' for i in range(30))
        (tmp_path / f"{name}.jsonl").write_text(rows)

    def read(seed):
        settings = DatasetSettings(source=str(tmp_path), shuffle_seed=seed)
        return [text for _, text in documents(settings, tmp_path, None, Reading())]

    assert read(1) == read(1) != read(2)
    assert sorted(read(1)) == sorted(read(None)) != read(1)
