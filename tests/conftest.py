"""Models that the tests share, what counts how often one is loaded, and what is found out once."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pipeline import Run, config
from transformers import PretrainedConfig

from outlier_atlas import stopping
from outlier_atlas.plan import requirements
from outlier_atlas.roles import cached_architecture

LONGEST = ("staleness", "workflow", "kills", "faults", "plan", "security", "hub", "report")
"""Files whose tests take seconds each and more, the longest first."""

# Last bits may depend on the number of threads; both sides of a comparison have the same.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, files are begun in this order: many short ones come last, and the processes end
    together."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def qwen3_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen3_moe(tmp_path_factory.mktemp("qwen3_moe"))


@pytest.fixture
def own_logging() -> Iterator[None]:
    """The rule script sets up the process's logging; that of the tests comes back."""
    ours, root = logging.getLogger("outlier_atlas"), logging.getLogger()
    before = ours.handlers, ours.level, ours.propagate, root.handlers
    yield
    ours.handlers, ours.propagate, root.handlers = before[0], before[2], before[3]
    ours.setLevel(before[1])
    logging.captureWarnings(False)


@pytest.fixture
def run(llama: Path, tmp_path: Path) -> Run:
    """Two sequences of 16 tokens in two layer groups, prepared."""
    data = config(
        llama, [[5, 17, 200, 9] * 4] * 2, tmp_path / "data", extraction={"layer_groups": 2}
    )
    run = Run(tmp_path, data)
    run.prepare()
    return run


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a model was loaded."""
    from outlier_atlas.extraction import compute  # takes seconds

    counted: list[int] = []
    load = compute.load
    monkeypatch.setattr(compute, "load", lambda *args: counted.append(1) or load(*args))
    return counted


@pytest.fixture(scope="session", autouse=True)
def _found_out_once() -> Iterator[None]:
    """What a stage finds out on the meta device, from a model's configuration alone.

    A job does so once, in a process of its own; here hundreds of stages, of equal models, are in
    one. Tests that ask what is found out call the functions themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached_architecture, "describe", _once(cached_architecture.describe))
        patch.setattr(requirements, "sizes", _once(requirements.sizes))
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_are_of_the_tests() -> Iterator[None]:
    """Where a rule script is called in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopping, "listen", lambda: None)
        patch.setattr(stopping, "finish", lambda: None)
        yield


def _once(find_out: Any) -> Any:
    known: dict[tuple[Any, ...], Any] = {}

    def found(config: PretrainedConfig, *of: Any) -> Any:
        # An architecture follows from the configuration, too, and has no hash.
        simple = (each for each in of if isinstance(each, str | int))
        key = (type(config), config.to_json_string(use_diff=False), *simple)
        if key not in known:
            known[key] = find_out(config, *of)
        return known[key]

    return found
