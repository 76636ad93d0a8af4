"""Models of the hub: a revision resolved to a commit, and of its files only what is needed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from outlier_atlas.checkpoint.folder import (
    INDEX,
    TEMPLATES,
    choose_weights,
    index_files,
    is_tokenizer_file,
)
from outlier_atlas.digests import Digests
from outlier_atlas.files import DamagedFileError

FETCH_AGAIN = (
    "fetch it again: `snakemake --cores 1 --forcerun fetch_model --configfile YOURS -- fetch`"
)
CONFIGURATION = (".json", ".jinja", ".model", ".txt", ".tiktoken")
"""Endings of the files other than weights: configuration, tokenizer, chat template."""


@dataclass(frozen=True)
class Known:
    """What is known of a model before its weights are downloaded.

    Attributes:
        commit: its commit.
        folder: of its configuration, in the cache of the hub.
        headers: folder with its weights' files, in which only the headers are filled in; it goes
            with what it lies in.
        files: names of the weights' files.
    """

    commit: str
    folder: Path
    headers: Path
    files: Sequence[str]


BLOB = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
"""The name of a file in the cache: Git's hash of it, or sha256 of one that Git LFS keeps."""


def check_cached(folder: Path, names: Iterable[str], digests: Digests) -> None:
    """Compare files of the cache with their hashes: a damaged one would become another model.

    Args:
        folder: of a commit in the cache.
        names: of files in it.
        digests: of these files.

    Raises:
        DamagedFileError: a file is not what was downloaded; without it, it is downloaded again.
    """
    blobs = {name: (folder / name).resolve() for name in names}
    found = digests.of({name: folder / name for name in blobs})
    for name, blob in blobs.items():
        if not BLOB.fullmatch(blob.name):
            continue  # a cache without links
        if blob.name != (found[name] if len(blob.name) == 64 else _git_hash(blob)):
            raise DamagedFileError(blob, f"{name} is not what the hub has")


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def download(
    repository: str, revision: str | None, trust_remote_code: bool, check: Callable[[Known], object]
) -> tuple[str, Path]:
    """Download a model into the cache of the hub (`HF_HOME`).

    Args:
        check: raises where the model cannot be used; its weights are not downloaded then.

    Returns:
        The commit, and the folder of its files.

    Raises:
        ValueError: as `look_up` has it; nothing but the configuration is downloaded then.
    """
    with look_up(repository, revision, trust_remote_code) as known:
        check(known)
        _snapshot(repository, known.commit, known.files)
    return known.commit, known.folder


@contextmanager
def look_up(repository: str, revision: str | None, trust_remote_code: bool) -> Iterator[Known]:
    """Download the configuration of a model, and of its weights the headers.

    Raises:
        ValueError: there is no such model or revision, it is gated, the hub cannot be reached, or
            the model has no safetensors weights.
    """
    import huggingface_hub as hub

    with readable_errors("model", repository, revision), TemporaryDirectory() as temporary:
        info = hub.HfApi().model_info(repository, revision=revision)
        names = [file.rfilename for file in info.siblings or () if "/" not in file.rfilename]
        weights = choose_weights(repository, names)
        endings = (*CONFIGURATION, ".py") if trust_remote_code else CONFIGURATION
        wanted = [name for name in names if name.endswith(endings) or is_tokenizer_file(name)]
        templates = (file.rfilename for file in info.siblings or ())
        wanted += [name for name in templates if name.startswith(f"{TEMPLATES}/")]
        folder = _snapshot(repository, info.sha, wanted)
        check_cached(folder, [name for name in wanted if (folder / name).is_file()], Digests())
        if not weights:
            weights = index_files(folder / INDEX)
        missing = sorted(set(weights) - set(names))
        if missing:
            raise ValueError(f"{repository}: {INDEX} names {missing[0]!r}, which is not there")
        headers = Path(temporary) / repository.replace("/", "--")
        headers.mkdir()
        _headers(repository, info.sha, weights, headers)
        yield Known(str(info.sha), folder, headers, weights)


def _headers(repository: str, commit: str, names: Sequence[str], folder: Path) -> None:
    """Write files that have the headers of weights and a hole where the weights would be.

    Raises:
        ValueError: a file is no safetensors file.
    """
    import huggingface_hub as hub

    def write(name: str) -> None:
        try:
            held = hub.HfApi().parse_safetensors_file_metadata(repository, name, revision=commit)
        except hub.errors.SafetensorsParsingError as error:
            raise ValueError(f"{repository}: {name} is no safetensors file") from error
        header = {
            key: {"dtype": t.dtype, "shape": t.shape, "data_offsets": t.data_offsets}
            for key, t in held.tensors.items()
        }
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(
                8 + len(text) + max((t.data_offsets[1] for t in held.tensors.values()), default=0)
            )

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, names))


def cached(repository: str, commit: str) -> Path:
    """The folder of a downloaded commit, without asking the network.

    Raises:
        ValueError: it is not in the cache any more.
    """
    import huggingface_hub as hub

    config = hub.try_to_load_from_cache(repository, "config.json", revision=commit)
    if not isinstance(config, str):
        raise ValueError(
            f"{repository} at {commit[:12]} is not in the hub's cache any more; {FETCH_AGAIN}"
        )
    return Path(config).parent


@contextmanager
def readable_errors(kind: str, repository: str, revision: str | None) -> Iterator[None]:
    """Turns what can go wrong with the hub into one sentence each.

    Args:
        kind: `model` or `dataset`.
    """
    from huggingface_hub import errors

    name = f"{kind} {repository!r}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise gated(name) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name} has no revision {revision!r}") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(
            f"{name}: there is no such {kind} on the hub, or it is private (then log in: "
            f"`hf auth login`, or set HF_TOKEN); a local folder begins with ./ or /"
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise ValueError(f"{name}: the hub cannot be reached (offline)") from error
    except (errors.HTTPError, ConnectionError) as error:  # of the HTTP library that the hub's uses
        raise ValueError(
            f"{name}: the hub cannot be reached ({type(error).__name__}); try again"
        ) from error


def gated(name: str) -> ValueError:
    """What to do about a gated model or dataset."""
    return ValueError(
        f"{name} is gated: accept its terms on its page, then log in (`hf auth login`, or set "
        f"HF_TOKEN)"
    )


def _snapshot(repository: str, commit: str, names: Sequence[str]) -> Path:
    import huggingface_hub as hub

    return Path(hub.snapshot_download(repository, revision=commit, allow_patterns=list(names)))
