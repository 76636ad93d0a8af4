"""The plan of a run, before a weight is read: what it takes, what there is, and what would fit."""
