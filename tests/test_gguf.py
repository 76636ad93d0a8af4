"""GGUF files: values of their models, and the refusal of everything that would be ignored."""

import re
from dataclasses import replace
from pathlib import Path

import dumb_llama
import gguf as reference
import gguf_files
import numpy as np
import pyarrow.parquet as pq
import pytest
import real
import torch

from outlier_atlas.checkpoint import gguf, source
from outlier_atlas.checkpoint.gguf import configuration, file, tensors, tokenizer
from outlier_atlas.files import read_record
from outlier_atlas.loading.headers import check_headers
from outlier_atlas.loading.partial import load_model
from outlier_atlas.roles.architecture import describe
from outlier_atlas.settings.model import ModelSettings
from outlier_atlas.weights.measure import measure


def folder_of(path):
    """Return the folder of the model in a file, which is written once."""
    folder = path.with_name("model")
    if not folder.exists():
        gguf.describe(path, folder)
    return folder


def loaded(folder, layers=None, dtype="float32"):
    config = source.load_config(folder)
    architecture = describe(config)
    layers = layers or range(architecture.layers)
    head = layers[-1] + 1 == architecture.layers
    return load_model(folder, config, architecture, layers, dtype, head=head)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a function from names to the path of a tiny file and the model it was written from."""
    kept = {}

    def write(name):
        if name not in kept:
            model = gguf_files.model(name)
            path = tmp_path_factory.mktemp(name) / "m.gguf"
            kept[name] = gguf_files.write(path, name, model), model
        return kept[name]

    return write


# --- The same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", gguf_files.MODELS)
def test_a_model_computes_what_the_one_does_that_the_file_was_written_from(name, written):
    path, model = written(name)
    folder = folder_of(path)
    ours = loaded(folder)
    for key, tensor in model.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key
    ids = torch.arange(1, 41)[None]
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, model(ids).logits)
    # A layer group has the same weights, and its headers are checked before any is read.
    part = loaded(folder, range(1, 2), "bfloat16")
    held = {k: v for k, v in part.state_dict().items() if re.search(r"\.1\.", k)}
    assert held
    for key, tensor in held.items():
        assert torch.equal(tensor, model.state_dict()[key].to(torch.bfloat16)), key
    config = source.load_config(folder)
    check_headers(folder, ["m.gguf"], config, describe(config), range(2), True)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_blocks_are_dequantized_as_the_gguf_package_does(kind, tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", "qwen3moe", gguf_files.model("qwen3moe"), kind)
    held = {t.name: t for t in reference.GGUFReader(path).tensors}
    down = held["blk.1.ffn_down_exps.weight"]
    gate, up = held["blk.1.ffn_gate_exps.weight"], held["blk.1.ffn_up_exps.weight"]
    assert down.tensor_type.name == kind
    dense = {t.name: reference.quants.dequantize(t.data, t.tensor_type) for t in (down, gate, up)}
    for dtype in (torch.float32, torch.bfloat16):
        state = loaded(folder_of(path), dtype=str(dtype).removeprefix("torch.")).state_dict()
        experts = "model.layers.1.mlp.experts"
        wanted = torch.from_numpy(np.array(dense[down.name])).to(dtype)
        assert torch.equal(state[f"{experts}.down_proj"], wanted)
        both = np.concatenate([dense[gate.name], dense[up.name]], axis=1)
        assert torch.equal(state[f"{experts}.gate_up_proj"], torch.from_numpy(both).to(dtype))
    record = tmp_path / "record.json"
    source.fetch(ModelSettings(source=str(path)), tmp_path, record)
    assert kind in read_record(record)["quantization"]
    measure(record, tmp_path, False, tmp_path / "weights", 2)
    rows = pq.read_table(tmp_path / "weights" / "weights.parquet").to_pylist()
    (row,) = (
        r
        for r in rows
        if r["weight"].endswith("layers.1.mlp.experts.down_proj") and r["expert"] == 3
    )
    assert row["dtype"] == kind
    assert abs(row["value"]) == np.abs(dense[down.name][3]).max()


@pytest.mark.slow
def test_the_built_in_model_is_read_as_an_independent_reader_reads_it():
    folder = real.built_in(Path("resources"))
    (path,) = folder.glob("*.gguf")
    state = loaded(folder).state_dict()
    wanted = dumb_llama.of_gguf(path)
    assert len(wanted) == 272
    for name, values in wanted.items():
        assert np.array_equal(state[name].numpy(), values), name


# --- Nothing lost, nothing invented --------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-3.1", "qwen2moe"])
def test_a_file_with_one_tensor_changed_is_refused_by_its_name(name, written):
    path, _ = written(name)
    whole = file.read(path)
    config = configuration.configuration(whole)
    assert tensors.match_weights(whole, config)
    for tensor, blocks in whole.blocks.items():
        others = {key: value for key, value in whole.blocks.items() if key != tensor}
        for changed, said in {
            "dropped": (others, tensor),
            "renamed": (others | {f"x.{tensor}": blocks}, tensor),
            "added": (whole.blocks | {f"x.{tensor}": blocks}, f"x.{tensor}"),
            "of another shape": (
                others | {tensor: replace(blocks, shape=(*blocks.shape[:-1], 7))}, tensor,
            ),
        }.items():  # fmt: skip
            if tensor == "rope_freqs.weight" and changed != "added":
                continue  # its values are checked with the metadata, below
            with pytest.raises(ValueError, match=re.escape(said[1])):
                tensors.match_weights(replace(whole, blocks=said[0]), config)


@pytest.mark.parametrize("name", ["llama", "qwen3moe", "gemma2", "phi3", "stablelm", "falcon"])
def test_no_key_of_the_metadata_is_passed_over(name, written):
    """Another value of a key gives another model, or is refused by the name of the key."""
    path, _ = written(name)
    whole = file.read(path)
    held = configuration.configuration(whole).to_dict()
    own = [key for key in whole.metadata if key.startswith(f"{whole.architecture}.")]
    assert len(own) > 8
    for key in own:
        value = whole.metadata[key]
        other = value * 2 if isinstance(value, float) else value + 2
        changed = replace(whole, metadata=whole.metadata | {key: other})
        try:
            assert configuration.configuration(changed).to_dict() != held, key
        except ValueError as error:
            # Or by one that contradicts it, or as transformers has it.
            assert any(name in str(error) for name in own) or "cannot read a conf" in str(error)
    unknown = f"{whole.architecture}.attention.new_kind"
    with pytest.raises(ValueError, match=re.escape(unknown)):
        configuration.configuration(replace(whole, metadata=whole.metadata | {unknown: 1}))


@pytest.mark.parametrize("name", ["llama", "qwen3moe", "gemma3", "phi3", "stablelm", "starcoder2"])
def test_a_key_that_is_missing_is_refused_or_means_what_llama_cpp_takes_it_for(name, written):
    """The default of the configuration's class, which belongs to another model, is never used."""
    whole = file.read(written(name)[0])
    own = f"{whole.architecture}."
    held = configuration.configuration(whole).to_dict()
    for key in [key for key in whole.metadata if key.startswith(own)]:
        others = {k: v for k, v in whole.metadata.items() if k != key}
        try:
            made = configuration.configuration(replace(whole, metadata=others))
            meant = made.to_dict()
            tensors.match_weights(replace(whole, metadata=others), made)
        except ValueError:
            continue
        if key == f"{own}rope.freq_base":
            rope = made.rope_parameters
            assert rope.get("full_attention", rope)["rope_theta"] == 10000
        elif key == f"{own}rope.dimension_count":
            assert configuration._rotated(made) == configuration._head_width(made)
        else:
            assert meant == held, key


def test_what_the_converter_writes_of_phi3_changes_nothing(written):
    whole = file.read(written("phi3")[0])
    more = {
        "phi3.attention.sliding_window": 0,
        "phi3.rope.scaling.original_context_length": 4096,
        "somebody.quantized_by": "x",
    }
    made = configuration.configuration(replace(whole, metadata=whole.metadata | more))
    assert made.sliding_window is None


def test_heads_that_are_rotated_in_part_where_the_class_cannot_are_refused(written):
    whole = file.read(written("qwen3")[0])
    part = replace(whole, metadata=whole.metadata | {"qwen3.rope.dimension_count": 16})
    with pytest.raises(ValueError, match=r"qwen3\.rope\.dimension_count = 16"):
        tensors.match_weights(part, configuration.configuration(part))


@pytest.mark.parametrize(
    ("added", "attribute", "wanted"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, "factor", 4.0),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
          "rope.scaling.original_context_length": 32}, "original_max_position_embeddings", 32),
    ],
)  # fmt: skip
def test_scaling_of_the_rotation_is_taken_over(added, attribute, wanted, written):
    whole = file.read(written("qwen3")[0])
    keys = {f"qwen3.{key}": value for key, value in added.items()}
    rope = configuration.configuration(replace(whole, metadata=whole.metadata | keys))
    assert rope.rope_parameters["rope_type"] == added["rope.scaling.type"]
    assert rope.rope_parameters[attribute] == wanted


def test_factors_that_no_scaling_gives_are_refused(tmp_path):
    def change(held, said):
        held["rope_freqs.weight"][3] *= 1.01

    path = gguf_files.write(
        tmp_path / "m.gguf", "llama-3.1", gguf_files.model("llama-3.1"), change=change
    )
    with pytest.raises(ValueError, match=r"rope_freqs\.weight"):
        configuration.configuration(file.read(path))


def test_a_mixture_that_transformers_would_read_as_dense_is_refused(written):
    whole = file.read(written("llama")[0])
    mixture = replace(whole, metadata=whole.metadata | {"llama.expert_count": 8})
    with pytest.raises(ValueError, match=r"llama\.expert_count = 8"):
        configuration.configuration(mixture)


# --- Files ---------------------------------------------------------------------------------------


def test_a_split_file_is_read_whole_whichever_part_is_named(tmp_path):
    model = gguf_files.model("qwen2")
    first = gguf_files.write(tmp_path / "m.gguf", "qwen2", model, parts=3)
    for part in sorted(tmp_path.glob("*.gguf")):
        record = tmp_path / f"{part.stem}.json"
        source.fetch(ModelSettings(source=str(part)), tmp_path, record)
        assert len([name for name in read_record(record)["sums"] if name.endswith(".gguf")]) == 3
        state = loaded(source.locate(read_record(record), tmp_path)).state_dict()
        for key, tensor in model.state_dict().items():
            assert torch.equal(state[key], tensor), key
    second = first.with_name("m-00002-of-00003.gguf")
    content = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"split\.no is 0, but its file name says part 2"):
        file.read(first)
    second.unlink()
    with pytest.raises(ValueError, match=r"m-00002-of-00003\.gguf is missing"):
        file.read(first)
    second.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"m-00002-of-00003\.gguf: "):
        file.read(first)


# --- Tokens --------------------------------------------------------------------------------------


def with_tokens(written, **keys):
    whole = file.read(written("qwen2")[0])
    said = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return tokenizer.tokenizer(replace(whole, metadata=whole.metadata | said))


def test_a_space_before_the_first_word_is_there_if_the_file_says_so(written):
    spaced = with_tokens(written)
    bare = with_tokens(written, add_space_prefix=False)
    made = [t.convert_ids_to_tokens(t("ab")["input_ids"][-2:]) for t in (spaced, bare)]
    assert made == [["▁a", "b"], ["a", "b"]]


def test_tokens_around_a_text_are_those_that_the_file_asks_for(written):
    inner = with_tokens(written, add_bos_token=False)("ab")["input_ids"]
    assert with_tokens(written, add_bos_token=True)("ab")["input_ids"] == [1, *inner]
    both = with_tokens(written, add_bos_token=True, add_eos_token=True)
    assert both("ab")["input_ids"] == [1, *inner, 2]


@pytest.mark.parametrize(
    "keys",
    [
        {"remove_extra_whitespaces": True},
        {"precompiled_charsmap": [1, 2]},
        {"new_kind": 1},
        {"tokens": ["a"] * 320},
    ],
)
def test_what_a_tokenizer_would_not_do_is_refused(keys, written):
    with pytest.raises(ValueError, match=next(iter(keys)).replace("tokens", "token 0 is 'a'")):
        with_tokens(written, **keys)


@pytest.mark.parametrize(("pre", "whole_words"), [("llama-bpe", True), ("qwen2", False)])
def test_a_byte_level_vocabulary_has_no_token_more_than_the_file(pre, whole_words, written):
    words = ["<|begin|>", "<|end_of_text|>", "<think▁x>", "a", "b", "c", "Ġ", "ab", "abc", "é"]
    kinds = [3, 3, 3, *[1] * (len(words) - 3)]
    whole = file.read(written("qwen2")[0])
    own = {k: v for k, v in whole.metadata.items() if not k.startswith("tokenizer.")}
    said = {
        "model": "gpt2", "pre": pre, "tokens": words, "token_type": kinds, "merges": ["a b"],
        "bos_token_id": 0, "eos_token_id": 1, "add_sep_token": False,
    }  # fmt: skip
    made = tokenizer.tokenizer(
        replace(whole, metadata=own | {f"tokenizer.ggml.{k}": v for k, v in said.items()})
    )
    assert len(made) == len(words)
    # `abc` is reached by no merge: vocabularies of Llama 3 take it whole, and begin with BOS.
    text = "abc<think▁x>ab<|end_of_text|>"
    begin, inner = ([0], [8]) if whole_words else ([], [7, 5])
    assert made(text)["input_ids"] == [*begin, *inner, 2, 7, 1]
    assert {0, 1, 2} <= {*made.all_special_ids} | {2}


@pytest.mark.slow
def test_text_is_split_as_the_pre_tokenizer_of_the_file_says():
    folder = real.built_in(Path("resources"))
    made = source.load_tokenizer(folder)
    # Ids of the model's own tokenizer: a space before digits, and each digit, are apart.
    assert made("Hello world! 123")["input_ids"] == [19556, 905, 17, 216, 33, 34, 35]
    (path,) = folder.glob("*.gguf")
    whole = file.read(path)
    for name, refused in {"gpt-2": False, "llama-bpe": False, "of-tomorrow": True}.items():
        changed = replace(whole, metadata=whole.metadata | {"tokenizer.ggml.pre": name})
        if refused:
            with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre = 'of-tomorrow'"):
                tokenizer.tokenizer(changed)
        else:
            assert tokenizer.tokenizer(changed)("a b")["input_ids"]
