PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint format clean

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

test: lint ## Everything that must hold
	$(RUN)/python -m pytest

format: $(STAMP) ## Format the code
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

clean: ## Remove the environment and what tools left; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
