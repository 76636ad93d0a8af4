"""Descriptions of tables, their files, and the tables of weights, ablations and times."""

from __future__ import annotations

from outlier_atlas.tables.files import left_out, read, refuse_other_definitions, streaming, write
from outlier_atlas.tables.job_times import JOB_TIMES
from outlier_atlas.tables.losses import ABLATIONS
from outlier_atlas.tables.parameters import parameters
from outlier_atlas.tables.table import Column, Table
from outlier_atlas.tables.weights import (
    SMOOTHQUANT_SCALES,
    WEIGHT_CHANNELS,
    WEIGHT_ERRORS,
    WEIGHT_TABLES,
    WEIGHTS,
)

__all__ = [
    "ABLATIONS",
    "JOB_TIMES",
    "SMOOTHQUANT_SCALES",
    "WEIGHTS",
    "WEIGHT_CHANNELS",
    "WEIGHT_ERRORS",
    "WEIGHT_TABLES",
    "Column",
    "Table",
    "left_out",
    "parameters",
    "read",
    "refuse_other_definitions",
    "streaming",
    "write",
]
