"""Tokenizer of a GGUF file, compared with the entries of the file's metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outlier_atlas.checkpoint.gguf.file import GgufFile
from outlier_atlas.sanitize import gist, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX = "tokenizer.ggml."
"""Prefix of the metadata keys of a tokenizer."""

GPT2_SPLIT = {
    "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4",
}  # fmt: skip
"""Names in `tokenizer.ggml.pre` of vocabularies that split text as GPT-2 does."""

WHOLE_WORDS = {
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "tekken",
}  # fmt: skip
"""Names of vocabularies that encode a word as one token if they contain it, ignoring the merges.

They prepend BOS to a text unless the file states otherwise.
"""

NFC = {"qwen2", "qwen35"}
"""Names of vocabularies whose text is first normalized to Unicode's composed form (NFC)."""

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that are matched literally in a text; control tokens are special tokens."""

NAMED = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}  # fmt: skip
"""Metadata key of the id of each named special token."""

DIGITS_THEN_GPT2 = {
    "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
}  # fmt: skip
"""Names of vocabularies that split digits one by one, and then split text as GPT-2 does."""

READ = {
    "model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id", "eos_token_id",
    "unknown_token_id", "padding_token_id", "add_space_prefix", "add_bos_token", "add_eos_token",
}  # fmt: skip
"""Keys that the tokenizer is built from; the tokenizer is compared with their values."""

NO_TOKENS = {
    "eot_token_id", "eom_token_id", "eog_token_ids", "mask_token_id",
    "seperator_token_id", "cls_token_id",
    "token_type_count", "prefix_token_id", "suffix_token_id", "middle_token_id",
    "fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "fim_pad_token_id",
    "fim_rep_token_id", "fim_sep_token_id",
}  # fmt: skip
"""Keys that name tokens for generation, and change no token of a text."""


def tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """Return the tokenizer that a GGUF file describes.

    Raises:
        ValueError: transformers cannot build the tokenizer, or its tokenizer contradicts the file.
    """
    from transformers import AutoTokenizer

    first = file.parts[0]
    _check_keys(file)
    try:
        if _entry(file, "model") == "gpt2":
            built = _byte_level(file)
        else:
            built = AutoTokenizer.from_pretrained(
                first.parent, gguf_file=first.name, local_files_only=True
            )
    except ValueError:
        raise
    except Exception as error:  # on a damaged file the readers raise errors of any type
        raise ValueError(
            f"{first}: transformers cannot build its tokenizer ({gist(error)}); use the "
            f"safetensors files of this model instead"
        ) from error
    _check_vocabulary(file, built)
    _check_space(file, built)
    _frame(file, built)
    return built


def _entry(file: GgufFile, key: str, default: Any = None) -> Any:
    return file.metadata.get(f"{PREFIX}{key}", default)


def _check_keys(file: GgufFile) -> None:
    """Refuse a key that changes tokens in a way that transformers does not support.

    Raises:
        ValueError: there is such a key.
    """
    for key, value in file.metadata.items():
        name = key.removeprefix(PREFIX)
        if not key.startswith(PREFIX) or name in READ or name in NO_TOKENS:
            continue
        if name in ("remove_extra_whitespaces", "escape_whitespaces") and bool(value) == (
            name == "escape_whitespaces"
        ):
            continue  # transformers does so without a key for it
        if name == "add_sep_token" and not value:
            continue  # it is used for pairs of texts
        raise _refusal(file, key, value, "is a tokenizer setting that transformers does not know")


def _byte_level(file: GgufFile) -> PreTrainedTokenizerBase:
    """Build a byte-level BPE tokenizer from exactly the tokens in the file.

    The tokenizer classes of transformers add their own special tokens to a vocabulary without them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens, name = _entry(file, "tokens", []), _entry(file, "pre")
    kinds = [*_entry(file, "token_type", []), *[1] * len(tokens)][: len(tokens)]
    spelling = bytes_to_unicode()
    alphabet = {*spelling.values()}
    vocabulary = {
        token
        if kind in (CONTROL, USER_DEFINED) or alphabet.issuperset(token)
        else "".join(spelling[byte] for byte in token.encode()): number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    }
    merges = [tuple(merge.split(" ", 1)) for merge in _entry(file, "merges", [])]
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name in WHOLE_WORDS))
    backend.pre_tokenizer = _split(file)
    backend.decoder = decoders.ByteLevel()
    if name in NFC:
        backend.normalizer = normalizers.NFC()
    special_tokens = {
        key: tokens[number]
        for key, at in NAMED.items()
        if (number := _entry(file, at)) is not None and 0 <= number < len(tokens)
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=file.metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **special_tokens,
    )
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        tokenizer.add_tokens(
            [
                AddedToken(token, normalized=False, special=special)
                for token, token_kind in zip(tokens, kinds, strict=True)
                if token_kind == kind
            ],
            special_tokens=special,
        )
    return tokenizer


def _split(file: GgufFile) -> Any:
    """Return the pre-tokenizer that the file names.

    Raises:
        ValueError: the name is unknown.
    """
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    name = _entry(file, "pre")
    if name in GGUF_PRE_TOKENIZER_SPLITS:
        split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, level])
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in DIGITS_THEN_GPT2:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    if name in GPT2_SPLIT:
        return level
    raise _refusal(file, f"{PREFIX}pre", name, "names a way to split text that is not supported")


def _check_vocabulary(file: GgufFile, tokenizer: Any) -> None:
    """Compare each token of the file with the token that the tokenizer has for its id.

    Raises:
        ValueError: a token or the number of tokens differs.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = file.metadata.get(f"{PREFIX}tokens", [])
    spelling = bytes_to_unicode()
    built_tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokens)))) if tokens else []
    for number, (token, built) in enumerate(zip(tokens, built_tokens, strict=True)):
        spelled = "".join(spelling[byte] for byte in token.encode())
        spaces = "▁" * len(token) if not token.strip(" ") else token
        if built not in (token, spelled, spaces):
            raise ValueError(
                f"{file.parts[0]}: token {number} is {shortened(token, 40)!r}, but "
                f"{shortened(str(built), 40)!r} in the tokenizer that transformers builds; use the "
                f"safetensors files of this model instead"
            )
    if len(tokenizer) != len(tokens):
        raise ValueError(
            f"{file.parts[0]}: the file has {len(tokens)} tokens, but the tokenizer that "
            f"transformers builds has {len(tokenizer)}; use the safetensors files of this model "
            f"instead"
        )


def _check_space(file: GgufFile, tokenizer: Any) -> None:
    """Set whether a space is put before the first word, by default for SentencePiece only.

    Raises:
        ValueError: the tokenizer cannot do as the file states.
    """
    from tokenizers import pre_tokenizers

    sentencepiece = _entry(file, "model") != "gpt2"
    stated = bool(_entry(file, "add_space_prefix", sentencepiece))
    if sentencepiece and not stated and _begins_with_space(tokenizer):
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="never", split=False
        )
    has = _begins_with_space(tokenizer)
    if has != stated:
        raise _refusal(
            file,
            f"{PREFIX}add_space_prefix",
            stated,
            f"but the tokenizer of transformers has {has}",
        )


def _begins_with_space(tokenizer: Any) -> bool:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])
    return bool(tokens) and tokens[0].startswith(("▁", "Ġ"))


def _frame(file: GgufFile, tokenizer: Any) -> None:
    """Set which of BOS and EOS are put around a text, if the file states it.

    Raises:
        ValueError: the file asks for a token that it does not name.
    """
    from tokenizers import processors

    keys = ("add_bos_token", "add_eos_token")
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    has = (framed[: len(framed) - len(inner)] == [ends[0]], framed[-1:] == [ends[1]] != inner[-1:])
    defaults = (has[0] or _entry(file, "pre") in WHOLE_WORDS, has[1])
    stated = tuple(
        bool(_entry(file, key, default)) for key, default in zip(keys, defaults, strict=True)
    )
    if stated == has:
        return
    for key, is_stated, end in zip(keys, stated, ends, strict=True):
        if is_stated and end is None:
            raise _refusal(file, f"{PREFIX}{key}", True, "but the file names no such token")
    bos, eos = (
        tokenizer.convert_ids_to_tokens(e) if w else None for e, w in zip(ends, stated, strict=True)
    )
    template = " ".join(part for part in (bos and f"{bos}:0", "$A:0", eos and f"{eos}:0") if part)
    special = [(token, int(end)) for token, end in ((bos, ends[0]), (eos, ends[1])) if token]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=special
    )


def _refusal(file: GgufFile, key: str, value: Any, why: str) -> ValueError:
    shown = shortened(repr(value), 60)
    return ValueError(
        f"{file.parts[0]}: {key} = {shown} {why}; use the safetensors files of this model instead"
    )
