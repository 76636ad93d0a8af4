"""One folder for each criterion or measure, and the registries that collect them."""
