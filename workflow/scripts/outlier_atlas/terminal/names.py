"""Names by which the handler and its log records are found."""

NAME = "StageHandler"
"""Name of the handler."""

REASON = "outlier_atlas_reason"
"""Attribute of log records that say why a rule runs."""
