"""Amounts of work of jobs, by which their times are predicted and compared.

The same functions give the amounts of a planned job and of a job that has run.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from outlier_atlas.earlier_jobs import CAPTURED, FILE, PRODUCTS, STORED, TOKENS, VALUES
from outlier_atlas.store.layout import Layout

if TYPE_CHECKING:
    from outlier_atlas.plan.requirements import Plan

Sizes = dict[str, float]


def of_layer_group(plan: Plan, group: int, tokens: int) -> Sizes:
    """Return the amounts of work of an extraction job.

    Args:
        plan: the plan of the run.
        group: index of the layer group.
        tokens: number of tokens that the job runs.

    Returns:
        `file`: bytes of its weights in the checkpoint. `products`: multiplications of its matrix
        products, those of attention included. `captured`: numbers that are copied from the forward
        pass. `stored`: numbers that are compressed and written.
    """
    layout = plan.layout
    layers = layout.group_layers(group)
    measured = sum(layer in layout.layers for layer in layers)
    boundary = layout.hidden_size if layout.boundary_after(group) else 0
    width = 4 if layout.dtype == "float32" else 2
    of_weights = sum(plan.sizes.active[layer] for layer in layers) / width
    # Scores and weighted sums: two products of the hidden size for each pair of tokens.
    of_attention = len(layers) * 2 * layout.hidden_size * plan.tokens
    captured = measured * sum(map(layout.numbers, layout.sites)) + boundary
    stored = measured * sum(map(layout.numbers, layout.store)) + boundary
    return {
        FILE: float(plan.groups[group].file),
        PRODUCTS: tokens * (of_weights + of_attention),
        CAPTURED: float(tokens * captured),
        STORED: float(tokens * stored),
    }


def of_detection(layout: Layout, rounded: Collection[str] = ()) -> Sizes:
    """Return the amount of work of detection: `values`, the numbers that it summarizes.

    Sites that are not stored are summarized by extraction, and detection keeps its summaries.

    Args:
        layout: layout of the store.
        rounded: sites whose quantization errors are measured, in a second summary.
    """
    numbers = sum(map(layout.numbers, (*layout.store, *rounded)))
    return {VALUES: float(len(layout.layers) * layout.tokens * numbers)}


def of_checkpoint(weight_bytes: int) -> Sizes:
    """Return the amount of work of measuring weights: `file`, the bytes of the checkpoint."""
    return {FILE: float(weight_bytes)}


def of_tokens(tokens: int) -> Sizes:
    """Return the amount of work of tokenizing and of ablation: `tokens`."""
    return {TOKENS: float(tokens)}
