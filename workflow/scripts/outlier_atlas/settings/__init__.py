"""The configuration: one section for each stage, checked before anything runs.

Each section has its own module, so that the code digest of a rule covers only the sections that
the rule reads. The Snakefile parses the configuration at every start, so these modules import
neither torch nor zarr. The `description` of a field documents the setting; the JSON schema and
`config/README.md` are generated from these models.
"""
