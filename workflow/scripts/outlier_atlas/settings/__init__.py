"""The configuration: one section a stage, checked before anything runs.

Each section has a module of its own, so that a rule's code is that of its own section. The
Snakefile parses them at every start: they import neither torch nor zarr. A setting explains itself
in the `description` of its field; the JSON schema and `config/README.md` are generated from these
models.
"""
