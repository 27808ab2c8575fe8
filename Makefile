# Thin: each target calls the loadgen command. `make help` lists targets and variables.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOADGEN := $(BIN)/loadgen
RUN ?= runs/latest
SCENARIO ?= chat

# The options of `loadgen run`, as variables given on make's command line, reach it by its LOADGEN_ environment
# variables: whatever they hold, no shell reads it.
RUN_VARIABLES := $(shell $(PYTHON) -m loadgen.options make 2>/dev/null)
$(foreach name,$(RUN_VARIABLES),\
  $(if $(filter command,$(firstword $(origin $(name)))),$(eval export LOADGEN_$(name) := $(value $(name)))))
MAKEOVERRIDES :=

.DEFAULT_GOAL := help
.PHONY: help setup load report test lint bench system-deps clean

help: ## list targets and variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@$(PYTHON) -m loadgen.options help
	@printf '\nOthers: SCENARIO (default chat), RUN of `make report` (default runs/latest), PYTHON (default python3)\n'

setup: $(VENV)/.setup ## make .venv with the tested versions of what is needed to run

$(VENV)/.setup: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

load: setup ## run the steps up to CONCURRENCY users, against the simulator or HOST, and write a report
	$(LOADGEN) run $(SCENARIO)

report: setup ## build the report of RUN again
	$(LOADGEN) report $(RUN)

test: $(VENV)/.setup-dev ## run all tests
	$(BIN)/pytest

lint: $(VENV)/.setup-dev ## ruff, mypy, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.setup-dev ## ours and its peers against the reference server; what the simulator can emit
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python benchmarks/simulator_capacity.py

system-deps: ## install what the full tests need beside Python (Debian, as root)
	./.ci/system-deps

clean: ## remove .venv and caches; runs stay
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
