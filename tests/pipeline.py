"""The stages of a run, called as the rules' scripts call them, without Snakemake."""

import json
import logging
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import zarr

from outlier_atlas.ablation.job import Ablation
from outlier_atlas.ablation.run import ablate
from outlier_atlas.checkpoint.source import fetch, load_config, slug
from outlier_atlas.data.prepare import tokenize_dataset
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection.run import detect
from outlier_atlas.extraction.job import Job
from outlier_atlas.extraction.prepare import prepare_store
from outlier_atlas.extraction.run import extract
from outlier_atlas.loading.partial import DTYPES
from outlier_atlas.plan.requirements import Plan, plan
from outlier_atlas.roles import cached_architecture
from outlier_atlas.roles.block_sites import Tap
from outlier_atlas.settings.configuration import Settings, load
from outlier_atlas.settings.source import source_kind
from outlier_atlas.store.run import Run as StoredRun
from outlier_atlas.verification import Records, verify
from outlier_atlas.weights.join import join
from outlier_atlas.weights.measure import measure


class Run:
    """A run in a folder: its settings, and its stages one by one."""

    def __init__(self, root: Path, config: dict[str, Any], resources: Path | None = None) -> None:
        self.settings: Settings = load(config, "run")
        self.resources = resources or root / "resources"
        self.folder = root / "results" / self.settings.name
        self.model_record = self.resources / "models" / f"{slug(self.settings.model)}.json"
        self.tokens = self.folder / "tokens.parquet"
        self.heldout = self.resources / "tokens" / "heldout.parquet"
        self.heldout_record = self.resources / "tokens" / "heldout.json"
        self.tokens_record = self.folder / "manifests" / "tokens.json"
        self.store_record = self.folder / "manifests" / "store.json"
        self.tables = self.folder / "tables"
        self.weights = self.resources / "weights" / slug(self.settings.model)

    @property
    def stored(self) -> StoredRun:
        """The run as its stages are given it."""
        return StoredRun(
            self.folder, self.model_record, self.resources, self.tokens, self.tokens_record,
            self.heldout, self.heldout_record,
        )  # fmt: skip

    @property
    def activations(self) -> Path:
        return self.folder / "activations.zarr"

    def prepare(self) -> None:
        model = self.settings.model
        if not (source_kind(model.source) == "builtin" and self.model_record.exists()):
            fetch(model, self.resources, self.model_record)
        self.tokenize()
        self.create_store()

    def tokenize(self) -> None:
        tokenize_dataset(
            self.settings.dataset,
            self.model_record,
            self.resources,
            self.settings.model.trust_remote_code,
            None,
            self.tokens,
            self.tokens_record,
        )

    def create_store(self) -> None:
        prepare_store(
            self.settings.extraction.model_dump(mode="json"),
            self.settings.chunk_tokens,
            self.settings.model.dtype,
            False,
            self.stored,
        )

    def job(self, group: int, shard: int) -> Job:
        auto = self.settings.execution.batch_size == "auto"
        return Job(
            run=self.stored,
            group=group,
            shard=shard,
            manifest=self.folder / "manifests" / "extraction" / f"group-{group}.shard-{shard}.json",
            device="cpu",
            batch_size=1 if auto else int(self.settings.execution.batch_size),
            auto_batch=auto,
            verify=self.settings.extraction.verify,
            on_new_versions=self.settings.execution.on_new_versions,
        )

    def extract(self) -> None:
        extraction = self.settings.extraction
        for group in range(extraction.layer_groups):
            for shard in range(extraction.sequence_shards):
                extract(self.job(group, shard))

    def planned(self) -> Plan:
        """The plan, one sequence of 16 tokens a batch."""
        run = self.stored
        return plan(run.layout, run.model, run.resources, 1, 16, False, False)

    def detect(self) -> None:
        self.detect_outliers()
        self.join_weights()

    def detect_outliers(self) -> None:
        detection = self.settings.detection.model_dump(mode="json")
        run = self.stored
        detect(detection, run, self.tables, 2, sorted(run.job_manifests.glob("*.json")), False)

    def join_weights(self) -> None:
        smoothquant = self.settings.detection.smoothquant.model_dump(mode="json")
        join(smoothquant, self.weights if self.weights.exists() else None, self.tables)

    def verify(self) -> None:
        """Hold all that is committed against its records."""
        extraction = self.settings.extraction
        parts = product(range(extraction.layer_groups), range(extraction.sequence_shards))
        manifests = [self.job(group, shard).manifest for group, shard in parts]
        records = Records(
            self.stored, self.resources / "inputs" / "tokenize_dataset.json", manifests,
            [self.heldout_record] if self.heldout_record.exists() else [],
            detected=self.tables / "layer_magnitudes.parquet",
            ablated=self.tables / "ablations.parquet",
        )  # fmt: skip
        verify(records, 2)

    def measure_weights(self) -> None:
        """Before `detect`, whose tables are joined with them."""
        measure(self.model_record, self.resources, False, self.weights, 2)

    def hold_out(self) -> None:
        """The held-out tokens."""
        dataset = self.settings.dataset
        tokenize_dataset(
            dataset.model_copy(update={"sequences": self.settings.ablation.sequences}),
            self.model_record, self.resources, self.settings.model.trust_remote_code, None,
            self.heldout, self.heldout_record, before=dataset.sequences,
        )  # fmt: skip

    def ablate(self) -> None:
        """The held-out tokens, and the ablation stage."""
        self.hold_out()
        self.take_away()

    def take_away(self) -> None:
        """The ablation stage alone."""
        ablate(
            Ablation(
                self.settings.ablation.model_dump(mode="json"),
                self.settings.detection.bootstrap.model_dump(mode="json"),
                self.stored, device="cpu", device_memory=self.settings.execution.device_memory,
                on_new_versions=self.settings.execution.on_new_versions,
            )
        )  # fmt: skip

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table."""
        rows: list[dict[str, Any]] = pq.read_table(self.tables / f"{name}.parquet").to_pylist()
        return rows

    def array(self, site: str) -> np.ndarray:
        """A site's activations, (layer, token, channel)."""
        return np.asarray(zarr.open_group(self.activations, mode="r")[site][:])

    def all(self) -> None:
        self.prepare()
        self.extract()
        self.detect()


def named_by_verify(run: Run) -> list[str]:
    """What `verify` names of a damaged run, a line each."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("outlier_atlas.verification")
    log.addHandler(handler)
    try:
        with pytest.raises(ValueError, match=f"{run.folder}: .* run the same snakemake command"):
            run.verify()
    finally:
        log.removeHandler(handler)
    return lines


def config(
    model: Path, rows: Sequence[Sequence[int]], folder: Path, **sections: dict[str, Any]
) -> dict[str, Any]:
    """A configuration whose sequences are ready token ids, one document each."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"ids": list(row)}) + "\n" for row in rows))
    dataset = {
        "source": str(data),
        "input_ids_column": "ids",
        "packing": "document",
        "sequences": len(rows),
        "sequence_length": max(2, *map(len, rows)),
    }
    merged: dict[str, Any] = {"model": {"source": str(model)}, "dataset": dataset}
    for name, section in sections.items():
        merged[name] = merged.get(name, {}) | section
    return merged


def hooked(
    model: Path,
    dtype: str,
    tokens: TokenStore,
    sites: Sequence[str],
    batches: Sequence[range],
    layers: Sequence[int] | str = "all",
) -> dict[str, np.ndarray]:
    """What plain hooks on the whole model see: per site (layer, token, channel), float32."""
    config = load_config(model)
    whole = tiny.whole(model, DTYPES[dtype])
    architecture = cached_architecture.describe(config, False)
    taken: dict[tuple[str, int], list[torch.Tensor]] = {}

    shape = [0, 0]

    def keep(tap: Tap, tensor: torch.Tensor) -> None:
        rows = tensor.reshape(*shape, tensor.shape[-1])
        channels = [c for run in tap.ranges or [(0, rows.shape[-1])] for c in range(*run)]
        taken.setdefault((tap.site, tap.layer), []).extend(row[:, channels] for row in rows)

    for taps in architecture.taps:
        for site, tap in taps.items():
            if site not in sites or (layers != "all" and tap.layer not in layers):
                continue
            module = whole.get_submodule(f"{architecture.decoder}.{tap.module}")
            if tap.side == "input":
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, tap=tap: keep(
                        tap, kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
                    ),
                    with_kwargs=True,
                )
            else:
                module.register_forward_hook(
                    lambda _, __, output, tap=tap: keep(
                        tap, output[0] if isinstance(output, tuple | list) else output
                    )
                )
    with torch.inference_mode():
        for batch in batches:
            ids = np.stack([tokens.sequence(sequence) for sequence in batch])
            shape[:] = ids.shape
            whole(torch.from_numpy(ids.astype(np.int64)), use_cache=False)
    of = range(architecture.layers) if isinstance(layers, str) else layers
    return {
        site: np.stack([torch.cat(taken[site, layer]).float().numpy() for layer in of])
        for site in sites
    }
