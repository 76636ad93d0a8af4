"""The tokenizer of a GGUF file, compared with what the file says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outlier_atlas.checkpoint.gguf.file import GgufFile
from outlier_atlas.sanitize import gist, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX = "tokenizer.ggml."

GPT2_SPLIT = {
    "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4",
}  # fmt: skip
"""Names in `tokenizer.ggml.pre` of vocabularies that split text as GPT-2 does."""

WHOLE_WORDS = {
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "tekken",
}  # fmt: skip
"""Those that take a word for a token wherever the vocabulary has it, whatever merges make of it;
they begin a text with BOS unless the file says otherwise."""

NFC = {"qwen2", "qwen35"}
"""Those whose text is put into Unicode's composed form first."""

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that stand for themselves in a text; those of the first are special."""

NAMED = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}  # fmt: skip

DIGITS_THEN_GPT2 = {
    "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
}  # fmt: skip
"""Those that take each digit apart first."""

READ = {
    "model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id", "eos_token_id",
    "unknown_token_id", "padding_token_id", "add_space_prefix", "add_bos_token", "add_eos_token",
}  # fmt: skip
"""Keys that transformers or we make the tokenizer of; what they say is compared with it."""

NO_TOKENS = {
    "eot_token_id", "eom_token_id", "eog_token_ids", "mask_token_id",
    "seperator_token_id", "cls_token_id",
    "token_type_count", "prefix_token_id", "suffix_token_id", "middle_token_id",
    "fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "fim_pad_token_id",
    "fim_rep_token_id", "fim_sep_token_id",
}  # fmt: skip
"""Keys that name tokens for generation, and change no token of a text."""


def tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer that a GGUF file describes.

    Raises:
        ValueError: transformers cannot make one, or one that does what the file says.
    """
    from transformers import AutoTokenizer

    first = file.parts[0]
    _check_keys(file)
    try:
        if _said(file, "model") == "gpt2":
            made = _byte_level(file)
        else:
            made = AutoTokenizer.from_pretrained(
                first.parent, gguf_file=first.name, local_files_only=True
            )
    except ValueError:
        raise
    except Exception as error:  # readers of a damaged file raise what they like
        raise ValueError(
            f"{first}: transformers cannot make its tokenizer ({gist(error)}); take the "
            f"safetensors files of this model instead"
        ) from error
    _check_vocabulary(file, made)
    _check_space(file, made)
    _frame(file, made)
    return made


def _said(file: GgufFile, key: str, default: Any = None) -> Any:
    return file.metadata.get(f"{PREFIX}{key}", default)


def _check_keys(file: GgufFile) -> None:
    for key, value in file.metadata.items():
        name = key.removeprefix(PREFIX)
        if not key.startswith(PREFIX) or name in READ or name in NO_TOKENS:
            continue
        if name in ("remove_extra_whitespaces", "escape_whitespaces") and bool(value) == (
            name == "escape_whitespaces"
        ):
            continue  # as transformers does without a word of it
        if name == "add_sep_token" and not value:
            continue  # which would be of pairs of texts
        raise _refusal(file, key, value, "changes tokens in a way that transformers does not know")


def _byte_level(file: GgufFile) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of the file's own tokens, and no others.

    The classes of transformers add special tokens of their own to a vocabulary without them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens, name = _said(file, "tokens", []), _said(file, "pre")
    kinds = [*_said(file, "token_type", []), *[1] * len(tokens)][: len(tokens)]
    spelling = bytes_to_unicode()
    alphabet = {*spelling.values()}
    vocabulary = {
        token
        if kind in (CONTROL, USER_DEFINED) or alphabet.issuperset(token)
        else "".join(spelling[byte] for byte in token.encode()): number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    }
    merges = [tuple(merge.split(" ", 1)) for merge in _said(file, "merges", [])]
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name in WHOLE_WORDS))
    backend.pre_tokenizer = _split(file)
    backend.decoder = decoders.ByteLevel()
    if name in NFC:
        backend.normalizer = normalizers.NFC()
    named = {
        key: tokens[number]
        for key, at in NAMED.items()
        if (number := _said(file, at)) is not None and 0 <= number < len(tokens)
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=file.metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **named,
    )
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        made.add_tokens(
            [
                AddedToken(token, normalized=False, special=special)
                for token, own in zip(tokens, kinds, strict=True)
                if own == kind
            ],
            special_tokens=special,
        )
    return made


def _split(file: GgufFile) -> Any:
    """How text is split before the merges, by the name in the file.

    Raises:
        ValueError: the name is not known.
    """
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    name = _said(file, "pre")
    if name in GGUF_PRE_TOKENIZER_SPLITS:
        split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, level])
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in DIGITS_THEN_GPT2:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    if name in GPT2_SPLIT:
        return level
    raise _refusal(file, f"{PREFIX}pre", name, "splits text in a way that is not known here")


def _check_vocabulary(file: GgufFile, made: Any) -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = file.metadata.get(f"{PREFIX}tokens", [])
    spelling = bytes_to_unicode()
    given = made.convert_ids_to_tokens(list(range(len(tokens)))) if tokens else []
    for number, (token, own) in enumerate(zip(tokens, given, strict=True)):
        spelled = "".join(spelling[byte] for byte in token.encode())
        spaces = "▁" * len(token) if not token.strip(" ") else token
        if own not in (token, spelled, spaces):
            raise ValueError(
                f"{file.parts[0]}: token {number} is {shortened(token, 40)!r}, and in the "
                f"tokenizer that transformers makes it is {shortened(str(own), 40)!r}"
            )
    if len(made) != len(tokens):
        raise ValueError(
            f"{file.parts[0]}: it has {len(tokens)} tokens, and the tokenizer that transformers "
            f"makes has {len(made)}"
        )


def _check_space(file: GgufFile, made: Any) -> None:
    """A space before the first word, of vocabularies of SentencePiece: there by default."""
    from tokenizers import pre_tokenizers

    sentencepiece = _said(file, "model") != "gpt2"
    wanted = bool(_said(file, "add_space_prefix", sentencepiece))
    if sentencepiece and not wanted and _begins_with_space(made):
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="never", split=False
        )
    has = _begins_with_space(made)
    if has != wanted:
        raise _refusal(
            file,
            f"{PREFIX}add_space_prefix",
            wanted,
            f"and the tokenizer of transformers has {has}",
        )


def _begins_with_space(made: Any) -> bool:
    tokens = made.convert_ids_to_tokens(made("a", add_special_tokens=False)["input_ids"])
    return bool(tokens) and tokens[0].startswith(("▁", "Ġ"))


def _frame(file: GgufFile, made: Any) -> None:
    """Put tokens before and after a text as the file says, where it does."""
    from tokenizers import processors

    keys = ("add_bos_token", "add_eos_token")
    inner = made("a", add_special_tokens=False)["input_ids"]
    whole = made("a")["input_ids"]
    ends = (made.bos_token_id, made.eos_token_id)
    has = (whole[: len(whole) - len(inner)] == [ends[0]], whole[-1:] == [ends[1]] != inner[-1:])
    default = (has[0] or _said(file, "pre") in WHOLE_WORDS, has[1])
    wanted = tuple(bool(_said(file, key, there)) for key, there in zip(keys, default, strict=True))
    if wanted == has:
        return
    for key, want, end in zip(keys, wanted, ends, strict=True):
        if want and end is None:
            raise _refusal(file, f"{PREFIX}{key}", True, "and the file names no such token")
    bos, eos = (
        made.convert_ids_to_tokens(e) if w else None for e, w in zip(ends, wanted, strict=True)
    )
    template = " ".join(part for part in (bos and f"{bos}:0", "$A:0", eos and f"{eos}:0") if part)
    special = [(token, int(end)) for token, end in ((bos, ends[0]), (eos, ends[1])) if token]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=special
    )


def _refusal(file: GgufFile, key: str, value: Any, why: str) -> ValueError:
    said = shortened(repr(value), 60)
    return ValueError(
        f"{file.parts[0]}: {key} = {said} {why}; take the safetensors files of this model instead"
    )
