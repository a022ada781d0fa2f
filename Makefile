# Everything a developer does here. Needs only python3 (3.11 or newer) and make; what the targets
# use is installed into .venv by `setup`, with the versions and hashes of requirements.lock.

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup run test check bench-scale format format-check lint types arch test-system drill coverage \
        openapi bench build lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.stamp ## Make .venv with everything in it

.venv/.stamp: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "registryd needs Python 3.11 or newer as '$(PYTHON)'; choose another with: make PYTHON=python3.12 setup" >&2; \
	    exit 1; }
	@rm -rf .venv
	@# uv is faster, but does not know where pip was told to find packages: if it fails, pip tries.
	@if command -v uv >/dev/null 2>&1 && \
	    uv venv --quiet --python "$$(command -v $(PYTHON))" .venv && \
	    uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock && \
	    uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; then :; \
	else \
	    $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	        echo "$(PYTHON) has no venv or ensurepip; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	        exit 1; }; \
	    set -ex; \
	    $(PYTHON) -m venv --clear .venv; \
	    $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock; \
	    $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .; \
	fi
	@touch $@

run: setup ## Start registryd here; more flags with ARGS="--port 9000"
	$(BIN)/registryd serve $(ARGS)

test: setup ## Run the tests, all but the drills; one file with ARGS=tests/test_config.py
	$(PYTEST) $(or $(ARGS),-n 2)

check: format-check lint types arch test ## Everything that has to pass before a commit

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .

format-check: setup ## Tell what is not formatted
	$(BIN)/ruff format --check .

lint: setup ## Run ruff
	$(BIN)/ruff check .

types: setup ## Run mypy
	$(BIN)/mypy

arch: setup ## Check which folder may import which
	$(BIN)/lint-imports

test-system: setup ## Run only the tests that start the real process
	$(PYTEST) -m system $(ARGS)

drill: setup ## Run one long reliability drill: make drill NAME=store_restart
	@test -n "$(NAME)" || { echo "which one? make drill NAME=…" >&2; exit 2; }
	$(PYTEST) -m drill -k "$(NAME)" --timeout 0 -s $(ARGS)

coverage: setup ## Run the tests and show what they do not reach
	$(PYTEST) --cov --cov-report term-missing:skip-covered --cov-report html $(ARGS)

openapi: setup ## Write docs/openapi.json and docs/asyncapi.json
	$(BIN)/registryd openapi > docs/openapi.json.new
	mv docs/openapi.json.new docs/openapi.json
	$(BIN)/registryd asyncapi > docs/asyncapi.json.new
	mv docs/asyncapi.json.new docs/asyncapi.json

bench: setup ## Measure, and write benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks $(ARGS)

bench-scale: setup ## Measure 100 000 instances on three daemons for ten minutes
	$(BIN)/python -m benchmarks.scale $(ARGS)

build: setup ## Make the wheel and the source archive in dist/
	$(BIN)/python -m build --no-isolation

lock: ## Choose the newest versions anew and write requirements.lock (needs uv)
	@command -v uv >/dev/null 2>&1 || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	uv pip compile --quiet --universal --upgrade --python-version 3.11 --extra dev --generate-hashes \
	    --no-header --no-annotate --output-file requirements.lock pyproject.toml

clean: ## Remove .venv and everything that was made, but not the data
	rm -rf .venv dist build htmlcov .coverage docs/*.json.new
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
