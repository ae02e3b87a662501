PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin
WORKERS ?= 2
PYTEST = $(RUN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install quickstart check test test-slow quick-tests all-tests lint golden format clean

help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Install into .venv

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
		|| { echo "error: $(PYTHON) is $$($(PYTHON) --version); Python 3.11 or 3.12 is needed: make PYTHON=python3.11 …" >&2; exit 2; }
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

quickstart: $(STAMP) ## Sample data to a recommender, in runs/quickstart
	$(RUN)/deeprec run --config configs/quickstart.yaml

lint: $(STAMP) ## Lint, check the format, check the types
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

check: $(STAMP) ## Lint, types and the tests that take a moment: two minutes
	@$(MAKE) --no-print-directory -j2 quick-tests lint

test: $(STAMP) ## Lint, types and all tests but the slow ones: twelve minutes
	@$(MAKE) --no-print-directory -j2 all-tests lint

test-slow: $(STAMP) ## The slow tests: the quickstart, whole pipelines, the benchmarks: a quarter of an hour
	$(PYTEST) -m slow

quick-tests all-tests test-slow: export OMP_NUM_THREADS ?= 1
quick-tests all-tests test-slow: export OMP_WAIT_POLICY ?= PASSIVE

quick-tests:
	$(PYTEST) -m "not slow and not heavy" tests/unit

all-tests:
	$(PYTEST) -m "not slow"

golden: $(STAMP) ## Write the golden files of compiled pipelines anew
	DEEPREC_UPDATE_GOLDEN=1 $(RUN)/python -m pytest tests/unit/pipelines/test_training.py

format: $(STAMP) ## Format the code
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

clean: ## Remove the environment and what tools left; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
