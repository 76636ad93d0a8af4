"""Versions of packages and kind of device with which numbers were computed.

The same weights and tokens give other last bits with other versions of torch or transformers, or on
another kind of device. Therefore each commit record contains its origin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

VERSIONS, DEVICE = "versions", "device"
"""Keys of a commit's details."""


@dataclass(frozen=True, order=True)
class Origin:
    """The versions and the kind of device with which numbers were computed.

    An empty text means unknown.

    Attributes:
        torch: version of torch.
        transformers: version of transformers.
        device: `cpu`, `cuda` or `mps`.
    """

    torch: str = ""
    transformers: str = ""
    device: str = ""

    @classmethod
    def now(cls, device: str = "") -> Origin:
        """Return the origin of numbers that this process computes, without importing the packages.

        Args:
            device: name of the device, such as `cuda:0`; empty if it is not known yet.
        """
        return cls(version("torch"), version("transformers"), _kind(device))

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> Origin:
        """Return the origin in the details of a record; older records have no versions."""
        versions = details.get(VERSIONS, {})
        return cls(
            str(versions.get("torch", "")),
            str(versions.get("transformers", "")),
            _kind(str(details.get(DEVICE, ""))),
        )

    @property
    def versions(self) -> dict[str, str]:
        """The versions in the form of a record."""
        return {"torch": self.torch, "transformers": self.transformers}

    def differs(self, other: Origin) -> bool:
        """Return whether a field differs that is known in both origins."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return any(ours and theirs and ours != theirs for ours, theirs in pairs)

    def __str__(self) -> str:
        packages = [f"{package} {known}" for package, known in self.versions.items() if known]
        text = " and ".join(packages)
        if not self.device:
            return text
        return f"{text} on {self.device}" if text else self.device


def others(origins: Iterable[Origin], now: Origin) -> list[Origin]:
    """Return the origins that differ from the current one, each once."""
    return sorted({origin for origin in origins if now.differs(origin)})


def in_words(origins: Iterable[Origin]) -> str:
    """Return origins as part of a sentence."""
    return "; ".join(map(str, origins))


def refusal(what: Path, earlier: Iterable[Origin], now: Origin) -> str:
    """Return a message on why numbers of two origins are not mixed, and what to set.

    Args:
        what: folder with the earlier numbers.
        earlier: origins of the earlier numbers.
        now: current origin.
    """
    return (
        f"{what}: was computed under {in_words(earlier)}, and would grow under {now}, which gives "
        f"other last bits; set execution.on_new_versions: recompute (all of it is computed again) "
        f"or keep (both are mixed), or go back to what it was computed under"
    )


def _kind(device: str) -> str:
    return device.partition(":")[0]
