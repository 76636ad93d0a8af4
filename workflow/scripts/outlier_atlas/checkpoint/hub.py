"""Models of the hub: a revision is resolved to a commit, and only the needed files are fetched."""

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
"""Advice for a model or dataset that is no longer on this machine."""
CONFIGURATION = (".json", ".jinja", ".model", ".txt", ".tiktoken")
"""Endings of the files other than weights: configuration, tokenizer, chat template."""


@dataclass(frozen=True)
class HubModel:
    """Model of the hub whose weights are not downloaded yet.

    Attributes:
        commit: commit that the revision resolves to.
        folder: folder of the configuration, in the cache of the hub.
        headers: temporary folder of weight files that contain headers only.
        files: names of the weight files.
    """

    commit: str
    folder: Path
    headers: Path
    files: Sequence[str]


BLOB = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
"""Name of a file in the cache: the hash that Git gives it, or the sha256 of a Git LFS file."""


def check_cached(folder: Path, names: Iterable[str], digests: Digests) -> None:
    """Compare files of the cache with the hashes in their names: a damaged file is another model.

    Args:
        folder: folder of a commit in the cache.
        names: names of files in it.
        digests: known digests of these files.

    Raises:
        DamagedFileError: a file differs from the one downloaded. Once the file that the error names
            is removed, it is downloaded again.
    """
    blobs = {name: (folder / name).resolve() for name in names}
    sums = digests.of({name: folder / name for name in blobs})
    for name, blob in blobs.items():
        if not BLOB.fullmatch(blob.name):
            continue  # a cache without links has no hashes in its names
        if blob.name != (sums[name] if len(blob.name) == 64 else _git_hash(blob)):
            raise DamagedFileError(blob, f"{name} differs from the file on the hub")


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def download(
    repository: str,
    revision: str | None,
    trust_remote_code: bool,
    check: Callable[[HubModel], object],
) -> tuple[str, Path]:
    """Download a model into the cache of the hub (`HF_HOME`).

    Args:
        repository: repository on the hub.
        revision: branch, tag or commit; None for the default branch.
        trust_remote_code: whether Python files are also downloaded.
        check: called before the weights are downloaded; raises if the model cannot be used.

    Returns:
        The commit, and the folder of its files.

    Raises:
        ValueError: see `look_up`. Then only the configuration was downloaded.
    """
    with look_up(repository, revision, trust_remote_code) as hub_model:
        check(hub_model)
        _snapshot(repository, hub_model.commit, hub_model.files)
    return hub_model.commit, hub_model.folder


@contextmanager
def look_up(repository: str, revision: str | None, trust_remote_code: bool) -> Iterator[HubModel]:
    """Download the configuration of a model and the headers of its weights.

    Raises:
        ValueError: the model or revision does not exist, the model is gated, the hub cannot be
            reached, or the model has no safetensors weights.
    """
    import huggingface_hub as hub

    with readable_errors("model", repository, revision), TemporaryDirectory() as temporary:
        info = hub.HfApi().model_info(repository, revision=revision)
        names = [file.rfilename for file in info.siblings or () if "/" not in file.rfilename]
        weights = choose_weights(repository, names)
        endings = (*CONFIGURATION, ".py") if trust_remote_code else CONFIGURATION
        names_to_fetch = [
            name for name in names if name.endswith(endings) or is_tokenizer_file(name)
        ]
        templates = (file.rfilename for file in info.siblings or ())
        names_to_fetch += [name for name in templates if name.startswith(f"{TEMPLATES}/")]
        folder = _snapshot(repository, info.sha, names_to_fetch)
        check_cached(
            folder, [name for name in names_to_fetch if (folder / name).is_file()], Digests()
        )
        if not weights:
            weights = index_files(folder / INDEX)
        missing = sorted(set(weights) - set(names))
        if missing:
            raise ValueError(
                f"{repository}: {INDEX} lists {missing[0]!r}, which the repository does not have; "
                f"choose another model or revision"
            )
        headers = Path(temporary) / repository.replace("/", "--")
        headers.mkdir()
        _headers(repository, info.sha, weights, headers)
        yield HubModel(str(info.sha), folder, headers, weights)


def _headers(repository: str, commit: str, names: Sequence[str], folder: Path) -> None:
    """Write weight files that consist of their header and a hole in place of the weights.

    Raises:
        ValueError: a file is no safetensors file.
    """
    import huggingface_hub as hub

    def write(name: str) -> None:
        try:
            metadata = hub.HfApi().parse_safetensors_file_metadata(
                repository, name, revision=commit
            )
        except hub.errors.SafetensorsParsingError as error:
            raise ValueError(
                f"{repository}: {name} is not a safetensors file; choose another model or revision"
            ) from error
        header = {
            key: {"dtype": t.dtype, "shape": t.shape, "data_offsets": t.data_offsets}
            for key, t in metadata.tensors.items()
        }
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(
                8
                + len(text)
                + max((t.data_offsets[1] for t in metadata.tensors.values()), default=0)
            )

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, names))


def cached_folder(repository: str, commit: str) -> Path:
    """Return the folder of a downloaded commit, without network access.

    Raises:
        ValueError: the commit is no longer in the cache.
    """
    import huggingface_hub as hub

    config = hub.try_to_load_from_cache(repository, "config.json", revision=commit)
    if not isinstance(config, str):
        raise ValueError(
            f"{repository} at {commit[:12]} is no longer in the hub's cache; {FETCH_AGAIN}"
        )
    return Path(config).parent


@contextmanager
def readable_errors(kind: str, repository: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of the hub's libraries into one sentence each.

    Args:
        kind: `model` or `dataset`.
        repository: repository on the hub.
        revision: revision that was requested, for the message.

    Raises:
        ValueError: an error of the hub occurred in the block.
    """
    from huggingface_hub import errors

    name = f"{kind} {repository!r}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise gated(name) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(
            f"{name} has no revision {revision!r}; name an existing branch, tag or commit"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(
            f"{name}: no such {kind} on the hub, or it is private (then log in: `hf auth login`, "
            f"or set HF_TOKEN); a local folder begins with ./ or /"
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise ValueError(f"{name}: the hub cannot be reached (offline)") from error
    except (errors.HTTPError, ConnectionError) as error:  # raised by the hub's HTTP library
        raise ValueError(
            f"{name}: the hub cannot be reached ({type(error).__name__}); try again"
        ) from error


def gated(name: str) -> ValueError:
    """Return an error that says how to get access to a gated model or dataset."""
    return ValueError(
        f"{name} is gated: accept its terms on its page, then log in (`hf auth login`, or set "
        f"HF_TOKEN)"
    )


def _snapshot(repository: str, commit: str, names: Sequence[str]) -> Path:
    import huggingface_hub as hub

    return Path(hub.snapshot_download(repository, revision=commit, allow_patterns=list(names)))
