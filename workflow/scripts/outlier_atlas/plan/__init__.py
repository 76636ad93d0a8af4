"""The plan of a run, before a weight is read: what it needs, what there is, and what would fit."""
