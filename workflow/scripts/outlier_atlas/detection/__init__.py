"""Detection of outliers: one pass over the store of a run computes the tables of all criteria."""
