# Two commands on a bare machine: `make run` and `make test`. `make` alone lists them all.
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
SOURCE ?= simulated
# `make test-fast T=tests/unit/test_money.py` runs a part.
T ?= tests
FAST := tests/unit tests/integration/test_charges_equal_the_model.py tests/integration/test_facts_that_change.py \
	tests/integration/test_holds_end_with_their_jobs.py tests/integration/test_grants_that_are_over.py

.DEFAULT_GOAL := help
.PHONY: help install run test test-fast test-kubernetes check bench lock dashboards clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv with the locked dependencies (the other targets do it when needed)

$(INSTALLED): requirements.lock pyproject.toml deploy/python-env.sh
	@deploy/python-env.sh $(VENV)
	@touch $@

run: $(INSTALLED)  ## everything on this machine; SOURCE=simulated (default), json, slurm, apolo or kubernetes
	@exec $(VENV)/bin/credits run --source $(SOURCE)

test: $(INSTALLED)  ## all tests; installs the system packages they need
	@deploy/test-packages.sh
	@deploy/test-node.sh
	$(PY) -m pytest -n 2 --dist loadgroup $(T)

test-fast: $(INSTALLED)  ## the tests of the edit loop, under a minute; all others with `make test`
	$(PY) -m pytest -n 2 -q -m "not slow and not slurm and not browser and not prometheus" $(or $(filter-out tests,$(T)),$(FAST))

test-kubernetes: $(INSTALLED)  ## the tests of a real Kubernetes, which is built first: ten minutes, once
	@deploy/test-kubernetes.sh
	$(PY) -m pytest -m kubernetes tests/acceptance

check: $(INSTALLED)  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: $(INSTALLED)  ## measure speed and memory
	$(PY) -m bench

lock: $(INSTALLED)  ## resolve the dependencies anew into requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--extra dev --output-file requirements.lock pyproject.toml

dashboards: $(INSTALLED)  ## write the dashboards, recording rules and alerts to build/dashboards
	$(VENV)/bin/credits dashboards build build/dashboards

clean:  ## remove what was built and installed; the ledger's data in var/ stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
