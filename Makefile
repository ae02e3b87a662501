PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin
WORKERS ?= 2
PYTEST = $(RUN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder
unexport PYTHONDONTWRITEBYTECODE
UV := $(shell command -v uv)
PIP := $(RUN)/python -m pip --disable-pip-version-check --quiet
# uv knows nothing of pip's settings (certificates, an index), and what it cannot fetch pip may.
FAST_PIP = $(if $(UV),$(UV) pip install --quiet --python $(RUN)/python $(1) ||) $(PIP) install $(1)
LOCKS := base policy serve train pipeline cluster gpu dev
LOCK = $(or $(UV),$(RUN)/uv) pip compile --quiet --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--no-emit-package torch --no-annotate --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

.DEFAULT_GOAL := help
.PHONY: help install lock quickstart check test test-slow test-kube pipeline-in-containers images chart docs manifests quick-tests all-tests lint golden format clean

help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Install into .venv

# torch apart: its builds for CPU and CUDA have other hashes. TORCH_INDEX names an index that has the wanted one.
$(STAMP): pyproject.toml requirements/dev.txt requirements/torch.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "error: $(PYTHON) is $$($(PYTHON) --version); Python 3.11 is needed: make PYTHON=python3.11 …" >&2; exit 2; }
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements/torch.txt
	$(call FAST_PIP,--no-deps --require-hashes -r requirements/dev.txt)
	$(PIP) install --no-deps -e .
	@touch $(STAMP)

lock: ## Write requirements/ anew after a change of pyproject.toml; UPGRADE=1 takes the newest versions
	$(LOCK) pyproject.toml --extra dev -o requirements/dev.txt
	@set -e; for name in $(filter-out base gpu dev,$(LOCKS)); do \
		$(LOCK) pyproject.toml --extra $$name -c requirements/dev.txt -o requirements/$$name.txt; done
	$(LOCK) pyproject.toml -c requirements/dev.txt -o requirements/base.txt
	$(LOCK) pyproject.toml --extra gpu -o requirements/gpu.txt

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
	$(PYTEST) -m "slow and not kube"

quick-tests all-tests test-slow: export OMP_NUM_THREADS ?= 1
quick-tests all-tests test-slow: export OMP_WAIT_POLICY ?= PASSIVE

quick-tests:
	$(PYTEST) -m "not slow and not heavy" tests/unit

all-tests:
	$(PYTEST) -m "not slow and not kube"

test-kube: $(STAMP) ## Build the images and run them as pods would (buildah and podman, as root), and check the chart: ten minutes
	$(RUN)/python -m pytest -m kube tests/kube

pipeline-in-containers: $(STAMP) ## Run the compiled pipeline in containers as its pods, and ask what it made (as test-kube): three minutes
	@$(RUN)/python -m tests.kube.run_in_containers

images: ## Build the images named by IMAGES (serve train policy) with buildah, podman or docker; see containers/build
	PYTHON=$(PYTHON) containers/build

golden: $(STAMP) ## Write the golden files of compiled pipelines and of the chart anew
	DEEPREC_UPDATE_GOLDEN=1 $(RUN)/python -m pytest tests/unit/pipelines/test_training.py
	DEEPREC_UPDATE_GOLDEN=1 $(RUN)/python -m pytest -m kube tests/kube/test_chart.py -k golden

docs: $(STAMP) ## Write the reference pages that follow from the code anew
	$(RUN)/python docs/write.py
	DEEPREC_UPDATE_GOLDEN=1 $(RUN)/python -m pytest tests/integration/test_http_reference.py tests/e2e/test_pipeline.py -k "page or reference"

manifests: $(STAMP) ## Write the manifests for Kustomize anew from the chart; HELM names Helm's program
	$(RUN)/python helm/manifests.py --helm $(or $(HELM),helm)

chart: $(STAMP) ## Write the chart's schema and README anew after a change of its values
	$(RUN)/python helm/values.py

format: $(STAMP) ## Format the code
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

clean: ## Remove the environment and what tools left; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
