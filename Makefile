# Everything a developer runs. Each target sets up its own environment in .venv from a bare
# Python 3.11; `make` alone lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DOCS := $(VENV)/.ready-docs
READY_BENCH := $(VENV)/.ready-bench
# The STAC API that tests start has an environment of its own.
STAC_VENV := .cache/stac-venv
READY_STAC := $(STAC_VENV)/.ready
OUT ?= demo-out
# Two processes, and each file in one of them, so that what a file prepares is prepared once.
PYTEST_ARGS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench docs env clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(READY) ## map the virtual landscape: COGs, a quicklook and a table in demo-out/
	$(BIN)/xsoilsm demo -o $(OUT)

test: $(READY) $(READY_STAC) ## run the tests; PYTEST_ARGS="-k cog -x" runs a part
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(READY) ## lint, formatting, types, layers, installed packages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check

format: $(READY) ## put the code into its canonical form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY_BENCH) ## measure speed and memory, beside other engines
	$(BIN)/python -m benchmarks

docs: $(READY_DOCS) ## build the documentation in site/
	$(BIN)/sphinx-build --fail-on-warning --quiet -b html docs site

env: $(READY) $(READY_STAC) ## only set up the environment

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache \
		build dist site $(OUT)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[regions,train,view,dev]'
	touch $@

$(READY_DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

$(READY_BENCH): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

$(READY_STAC): tests/services/requirements.txt
	$(PYTHON) -m venv $(STAC_VENV)
	$(STAC_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@
