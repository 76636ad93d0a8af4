"""Names that identify the handler and its log records."""

NAME = "StageHandler"
"""Name of the handler."""

REASON = "outlier_atlas_reason"
"""Attribute of log records that give the reason why a rule runs."""
