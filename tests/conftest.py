"""Models that the tests share, and what counts how often one is loaded."""

from pathlib import Path

import pytest
import tiny
import torch

# Last bits may depend on the number of threads; both sides of a comparison have the same.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def qwen3_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen3_moe(tmp_path_factory.mktemp("qwen3_moe"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a model was loaded."""
    from outlier_atlas.extraction import compute  # takes seconds

    counted: list[int] = []
    load = compute.load
    monkeypatch.setattr(compute, "load", lambda *args: counted.append(1) or load(*args))
    return counted
