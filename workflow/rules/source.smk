"""Location of the workflow on this machine, needed before its library can be imported."""

import io
import os
import shutil
import tarfile
import tempfile
from importlib.util import find_spec

# A private module, used here because `compat/snakemake_internals.py` cannot be imported yet. Only
# these classes tell which commit of which repository Snakemake reads.
from snakemake.sourcecache import HostingProviderFile, LocalGitFile


def local_folder(source):
    """Return the folder of the workflow, copied if the workflow comes from a repository.

    Snakemake fetches only single files of a repository, but the scripts import a library.
    """
    if isinstance(source, HostingProviderFile):
        repository = source.hosted_repo.repo
    elif isinstance(source, LocalGitFile):
        from git import Repo

        repository = Repo(source.repo_path)
    elif source.is_local:
        return Path(str(source))
    else:
        sys.exit(
            f"{source}: Outlier Atlas needs all of its files; `git clone` the repository, and "
            f'write `snakefile: "CLONE/workflow/Snakefile"` or `github(...)`'
        )
    commit = repository.commit(source.ref).hexsha
    copy = Path(".snakemake/outlier-atlas").absolute() / commit
    if not copy.exists():
        unpack(repository, commit, copy)
    return copy / source.path


def unpack(repository, commit, folder):
    """Unpack a commit into a folder, completely or not at all."""
    archive = io.BytesIO()
    repository.archive(archive, treeish=commit)
    archive.seek(0)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=folder.parent)
    try:
        with tarfile.open(fileobj=archive) as files:
            files.extractall(temporary, filter="data")
        os.rename(temporary, folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.exists():  # it exists if another process was faster
            raise


def require_packages(folder):
    """Exit with a message if a package is missing that planning needs."""
    names = ("pydantic",)
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        sys.exit(
            f"Outlier Atlas needs {', '.join(missing)} next to Snakemake: `pip install "
            f"{folder.parent}` installs all packages, and with `--sdm conda` "
            f"`pip install {' '.join(missing)}` is enough"
        )
