# `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
N ?= 2
SECONDS ?= 60
ARGS ?=
ONLY ?=
WORKERS ?= 2
TRIAL := build/cluster
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup run-node run-cluster check test sweep fuzz faults protocol bench bench-peers plot clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.node ## install exobus into .venv

run-node: $(VENV)/.node ## start a node here, alone or in its cluster (ARGS="--host auto --join CODE")
	@$(BIN)/exobus node $(ARGS)

run-cluster: $(VENV)/.node ## start N nodes on this machine, in a cluster of their own (N=2)
	@test -f $(TRIAL)/join-code || output=$$($(BIN)/exobus cluster init --name trial --data-dir $(TRIAL) 2>&1) || \
	  { echo "$$output"; exit 1; }
	@export EXOBUS_JOIN=$(TRIAL)/join-code; trap 'kill $$(jobs -p) 2>/dev/null || true' INT TERM; \
	for i in $$(seq 1 $(N)); do \
	  $(BIN)/exobus node --name node-$$i --data-dir $(TRIAL)/node-$$i $(ARGS) & \
	done; wait || wait

check: $(VENV)/.dev ## check formatting, lint, types and the tables of protocol.md
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m bus.document --check

test: $(VENV)/.dev ## run all tests in two processes; the default model is fetched once (WORKERS=0: in one)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

fuzz: $(VENV)/.dev ## fuzz every decoder of untrusted bytes (SECONDS=60 each, ONLY=wire)
	@for target in $(or $(ONLY),$$($(BIN)/python -m tests.fuzz)); do \
	mkdir -p build/fuzz/$$target; echo "$$target: build/fuzz/$$target.log"; \
	$(BIN)/python -m tests.fuzz $$target -max_total_time=$(SECONDS) -timeout=5 -rss_limit_mb=1024 -max_len=4096 \
	-artifact_prefix=build/fuzz/$$target- build/fuzz/$$target > build/fuzz/$$target.log 2>&1 \
	|| { tail -50 build/fuzz/$$target.log; exit 1; }; grep ^Done build/fuzz/$$target.log; done

sweep: $(VENV)/.dev ## compare every cut of every family that llama.cpp may run in parts with the whole model
	$(BIN)/python -m pytest tests/engines/llamacpp/test_sweep.py $(ARGS)

faults: $(VENV)/.dev ## kill and freeze real rings, into build/faults.json (ONLY='ring2-*-hub-*' SEED=1 COUNT=20)
	$(BIN)/python -m tests.faults $(if $(ONLY),--only '$(ONLY)') $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED))

protocol: $(VENV)/.dev ## write the tables of protocol.md
	$(BIN)/python -m bus.document

bench: $(VENV)/.dev ## measure, print a table, write build/bench.json (ONLY=hop_us,start_s)
	$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY))

bench-peers: $(VENV)/.dev ## compare with other chat servers, into build/peers.json (ONLY=exobus,llama-server)
	$(BIN)/python -m tests.bench.peers $(if $(ONLY),--only $(ONLY))

plot: $(VENV)/.bench ## draw docs/throughput.png from build/bench.json
	$(BIN)/python -m tests.bench.plot

clean: ## remove everything that was built and installed here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("exobus needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.node: pyproject.toml | $(VENV)/bin/python
	@echo "installing exobus and what it needs"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --progress-bar on --editable . | grep -E '^(Collecting|  *Downloading|Installing|Successfully)' | cut -c 1-100
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.node
	@echo "installing the engines and the tools for tests"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[mlx,tinygrad,dev]'
	@touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/.dev
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@
