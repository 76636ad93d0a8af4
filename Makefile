# make run                    the demo; ends by naming the report and the most striking finding
# make run CONFIG=mine.yaml   a run of your own
# make plan [CONFIG=...]      what a run takes, before it takes it
# make verify [CONFIG=...]    whether what a run has committed is undamaged
# make test | lint | docs     the tests; the linters; the generated documentation
# make bench                  what is measured, and against what
# make constraints            pins all dependencies again

SHELL := /bin/bash -euo pipefail
.DEFAULT_GOAL := run

PYTHON ?= python3
CORES ?= all
GPUS ?= 2
# Processes of the tests, which compute in one thread each.
WORKERS ?= logical
# Ctrl-C ends them in one line, while Snakemake is still being imported, too.
RUN_MODULE = .venv/bin/python -m outlier_atlas.interruptible
SNAKEMAKE = $(RUN_MODULE) snakemake --cores $(CORES) --resources gpu=$(GPUS)
# Before Snakemake, which ends in a stack trace where the file cannot be read.
CHECK = @$(RUN_MODULE) outlier_atlas.settings.document "$(or $(CONFIG),config/config.yaml)"
LIBRARY = workflow/scripts/outlier_atlas
PYTHON_FILES = workflow tests benchmarks

# Jobs and pip find the environment's own programs, whatever is active outside.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: run plan verify test lint format docs bench constraints clean

run: .venv/installed
	$(CHECK)
	OUTLIER_ATLAS_MAKE=1 $(SNAKEMAKE) $(if $(CONFIG),--configfile "$(CONFIG)")
	@$(RUN_MODULE) outlier_atlas.workflow "$(or $(CONFIG),config/config.yaml)"

plan: .venv/installed
	$(CHECK)
	$(SNAKEMAKE) $(if $(CONFIG),--configfile "$(CONFIG)") -- plan

verify: .venv/installed
	$(SNAKEMAKE) $(if $(CONFIG),--configfile "$(CONFIG)") -- verify

test: .venv/installed-dev
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: .venv/installed-dev
	.venv/bin/ruff check $(PYTHON_FILES)
	.venv/bin/ruff format --check $(PYTHON_FILES)
	.venv/bin/mypy
	.venv/bin/snakefmt --check Snakefile workflow/Snakefile workflow/rules
	.venv/bin/snakemake --lint
	.venv/bin/python tests/words.py

format: .venv/installed-dev
	.venv/bin/ruff check --fix $(PYTHON_FILES)
	.venv/bin/ruff format $(PYTHON_FILES)
	.venv/bin/snakefmt Snakefile workflow/Snakefile workflow/rules

docs: .venv/installed
	.venv/bin/python -m outlier_atlas.documentation .
	.venv/bin/snakemake --rulegraph mermaid-js | .venv/bin/python -m outlier_atlas.rulegraph README.md

bench: .venv/installed-dev
	for benchmark in $$(grep -l __main__ benchmarks/*.py); do .venv/bin/python "$$benchmark" || exit 1; done

constraints: .venv/installed
	.venv/bin/python -m pip install --quiet uv
	{ sed '/^[^#]/,$$d' constraints.txt; \
	  .venv/bin/uv pip compile --universal --python-version 3.11 --all-extras \
	    --no-emit-index-url --no-annotate --no-header --upgrade pyproject.toml; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf .venv .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# What results are compared with; `make test` runs these tests where it is installed.
.venv/installed-validation: .venv/installed-dev
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[validation]'
	touch $@
