"""The plan of a run before a weight is read: needed and available memory and disk, and advice."""
