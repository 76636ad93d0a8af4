"""Libraries that are imported once for all jobs of a run that load or describe a model.

torch, transformers and the code of models take several seconds to import, and each job is a
process of its own. A server (`server.py`) imports them while Snakemake runs the first jobs, which
need none of them. A job that needs them (`client.py`) has the server fork a process, which runs the
job's script instead of it, with its arguments, folder, environment and streams. Each job remains a
process of its own: it starts without a model, and its memory is free when it ends.

The server is used only for jobs that Snakemake starts on this machine with its own Python.
`OUTLIER_ATLAS_PRELOAD=0` in the environment turns it off.
"""
