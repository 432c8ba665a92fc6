# What one can do here; `make` or `make help` lists it. Needs Python 3.11 and a package index, nothing else.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
HOST := 127.0.0.1
PORT ?= 3000
URL ?= http://$(HOST):$(PORT)
MODELS ?= esm2_mini
COMMA := ,
VENV := .venv
BIN := $(VENV)/bin
SERVICE := service:ProteinEmbeddingService

export BENTOML_DO_NOT_TRACK := 1
export MODELS
export PATH := $(CURDIR)/$(BIN):$(PATH)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

setup: $(VENV)/.kernels ## make .venv with the pinned dependencies of the service, and compile the kernels

$(VENV)/.runtime: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "Python 3.11 is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# With the C compiler that is there, else with one from the package index, else not at all: torch's operations remain
$(VENV)/.kernels: $(VENV)/.runtime requirements-compiler.txt $(wildcard models/kernels/*.[ch] models/kernels/library.py)
	@$(BIN)/python -m models.kernels \
		|| { $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-compiler.txt \
			&& $(BIN)/python -m models.kernels; } \
		|| echo "the service will use torch's own operations" >&2
	@touch $@

$(VENV)/.dev: $(VENV)/.kernels requirements-dev.txt requirements-bulk.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: setup ## set up, start the service, embed the example proteins, show results, stop
	$(BIN)/python -m scripts.demo

serve: setup import ## set up and serve MODELS on HOST:PORT (127.0.0.1:3000) in the foreground
	exec $(BIN)/bentoml serve $(SERVICE) --host $(HOST) --port $(PORT)

import: setup ## put the models of MODELS into the model store, those that are not there
	@for model in $(filter-out none %:%,$(subst $(COMMA), ,$(MODELS))); do \
		$(BIN)/python -m scripts.import_model "$$model" --if-missing || exit; done

test: $(VENV)/.dev ## set up and run every test
	$(BIN)/python -m pytest

$(VENV)/.bulk: $(VENV)/.kernels requirements-bulk.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bulk.txt
	@touch $@

bulk: $(VENV)/.bulk ## add Ray for bulk runs, and show how scripts.embed_bulk is called
	$(BIN)/python -m scripts.embed_bulk --help

$(VENV)/.loadtest: $(VENV)/.runtime requirements-loadtest.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-loadtest.txt
	@touch $@

loadtest: $(VENV)/.loadtest ## add Locust and send mixed requests to the service at URL (http://127.0.0.1:3000)
	$(BIN)/python -m scripts.loadtest --url $(URL)

check: $(VENV)/.dev ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev ## format the code and mend what lint can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bento: setup import ## build the Bento protein_embedding_service:VERSION with MODELS inside
	$(BIN)/python -m scripts.build_bento

bento-gpu: setup import ## the same, for an image with CUDA
	$(BIN)/python -m scripts.build_bento --torch cuda

image: ## make an OCI image of the newest Bento; needs a Docker engine
	@docker info >/dev/null 2>&1 || { echo "there is no Docker engine here; any builder of images takes \
	env/docker/Dockerfile in the folder that \`make bento\` prints (docs/deploy.md)" >&2; exit 1; }
	$(BIN)/bentoml containerize protein_embedding_service:latest

clean: ## remove .venv and what the tools left
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help setup import demo serve test bulk loadtest check format bento bento-gpu image clean
