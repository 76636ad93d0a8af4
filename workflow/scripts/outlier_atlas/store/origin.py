"""The versions and the kind of device under which numbers were computed.

The same weights and tokens give other last bits under another torch, another transformers, or on
another kind of device. Each commit record therefore says what it was computed under.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

VERSIONS, DEVICE = "versions", "device"
"""The keys of a commit's details."""


@dataclass(frozen=True, order=True)
class Origin:
    """Versions and the kind of device under which numbers were computed.

    An empty text stands for what is not known.

    Attributes:
        torch, transformers: the versions of the packages.
        device: `cpu`, `cuda` or `mps`.
    """

    torch: str = ""
    transformers: str = ""
    device: str = ""

    @classmethod
    def now(cls, device: str = "") -> Origin:
        """Return the origin of what is computed from now on, without importing the packages.

        Args:
            device: a device such as `cuda:0`, where it is known already.
        """
        return cls(version("torch"), version("transformers"), _kind(device))

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> Origin:
        """Return the origin that a record states; older records have no versions."""
        versions = details.get(VERSIONS, {})
        return cls(
            str(versions.get("torch", "")),
            str(versions.get("transformers", "")),
            _kind(str(details.get(DEVICE, ""))),
        )

    @property
    def versions(self) -> dict[str, str]:
        """The versions as a record states them."""
        return {"torch": self.torch, "transformers": self.transformers}

    def differs(self, other: Origin) -> bool:
        """Whether something differs that both origins state."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return any(one and another and one != another for one, another in pairs)

    def __str__(self) -> str:
        packages = [f"{package} {known}" for package, known in self.versions.items() if known]
        said = " and ".join(packages)
        if not self.device:
            return said
        return f"{said} on {self.device}" if said else self.device


def others(origins: Iterable[Origin], now: Origin) -> list[Origin]:
    """Return the origins that differ from the current one, each once."""
    return sorted({origin for origin in origins if now.differs(origin)})


def in_words(origins: Iterable[Origin]) -> str:
    """Return several origins as part of a sentence."""
    return "; ".join(map(str, origins))


def refusal(what: Path, found: Iterable[Origin], now: Origin) -> str:
    """Return a sentence that says why numbers of two origins are not mixed, and what to set."""
    return (
        f"{what}: was computed under {in_words(found)}, and would grow under {now}, which gives "
        f"other last bits; set execution.on_new_versions: recompute (all of it is computed again) "
        f"or keep (both are mixed), or go back to what it was computed under"
    )


def _kind(device: str) -> str:
    return device.partition(":")[0]
