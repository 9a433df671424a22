# make run           sets up everything and runs the chain on the embedded sample (or on what params.yaml names)
# make ui            sets up everything and starts the Prefect UI with all that can be run from it, until Ctrl-C
# make retrain-demo  shows a new domain arrive, and a bad delivery, on the embedded samples (a minute)
# make test          sets up everything and passes the tests
# make fast-tests    the same without ruff and mypy, which `make test` runs beside them
# make test-slow     those that take minutes (kills at many moments, schedules, servers that die)
# make test-ui       those that need a browser or PostgreSQL
# make test-cluster  those on a local Ray, which it installs, and more of a local Dask
# make test-gpu      those that need a GPU, where rootstock/ and pytest suffice
# make lint          ruff and mypy
# make setup         .venv with everything, from constraints.txt
# make clean         removes .venv and the caches of the tools, and no data
# make help          prints these lines

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# `dvc repro` starts `python -m tasks.<stage>`: the environment's python has to come first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Tests start hundreds of Python processes, of which each would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE
# Two processes, each a file at a time: servers are waited for while others compute; the files that take longest lead.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run ui retrain-demo test fast-tests test-slow test-ui test-cluster test-gpu lint setup clean help

run: setup
	@$(BIN)/python -m flows.pipeline

ui: setup
	@exec $(BIN)/python -m flows.ui $(if $(PORT),--port $(PORT))

retrain-demo: setup
	@$(BIN)/python -m benchmarks.retrain_demo

test: setup  # first, so that what is wrong with Python names this target
	@$(MAKE) --no-print-directory --jobs 2 fast-tests lint

fast-tests: setup
	@$(BIN)/python -m pytest -m "not slow and not ui and not cluster" $(SIDE_BY_SIDE)

test-slow: setup
	@$(BIN)/python -m pytest -m slow $(SIDE_BY_SIDE)

test-ui: setup
	@$(BIN)/python -m pytest -m ui $(SIDE_BY_SIDE)

test-cluster: setup $(VENV)/.clusters
	@$(BIN)/python -m pytest -m cluster

test-gpu:
	@$(PYTHON) -m pytest --noconftest -o addopts= -q -s tests/gpu

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

setup: $(VENV)/.installed
	@$(BIN)/python -m tasks.bridge.versions

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Rootstock needs Python 3.11 or newer, and $(PYTHON) is %s. Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" % sys.version.split()[0])'
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (torch is large; this takes a minute or a few)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.clusters: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dask,ray]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache rootstock.egg-info

help:
	@sed -n '/^#/!q; s/^# //p' $(firstword $(MAKEFILE_LIST))
