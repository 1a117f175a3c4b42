# make run [IMAGES=URL] [EVAL=URL] [TEACHER=URL] [SET="a.b=c ..."] [SERVE=keep]     set up, then the whole line on this machine
# make test | test-slow | test-faults                                 set up, then the tests
# make dvc ARGS="repro"                                               DVC, with the environment its stages need
# make lint | format                                                  ruff, mypy
# make setup | lock | clean                                           the environments; their locks; away with them
#
# make's own exit status is 2 for every failure; `.venv/bin/python -m pipelines run` tells 1 (ours) from 2 (yours).

SHELL := /bin/sh
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
# Two trainers and a server share the cores with the tests: two workers, also on a big machine.
PYTEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev inputs run test test-slow test-faults dvc lint format lock clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

setup:
	@infra/setup/setup.sh main serving triton

setup-dev:
	@infra/setup/setup.sh dev serving triton

# Before minutes go into set-up: are the inputs there? Needs no environment of ours.
inputs:
	@python=$$(infra/setup/preflight.sh) && "$$python" -m pipelines.inputs

run: inputs setup
	@$(PYTHON) -m pipelines run $${IMAGES:+--images "$$IMAGES"} $${EVAL:+--evaluation "$$EVAL"} \
	    $${TEACHER:+--teacher "$$TEACHER"} \
	    $(if $(SERVE),--set 'deployment.serve=$(SERVE)') $(foreach setting,$(SET),--set '$(setting)')

test: setup-dev
	@$(PYTEST) -n $(PYTEST_WORKERS) --dist loadfile --durations=10 -m "not slow and not faults"

test-slow: setup-dev
	@$(PYTEST) -m slow

test-faults: setup-dev
	@$(PYTEST) -m faults

# dvc by its own command line, with the environment it needs: make dvc ARGS="repro"
dvc: setup
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PYTHON) -m dvc $(ARGS)

lint: setup-dev
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

format: setup-dev
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

lock:
	@infra/setup/lock.sh

# Environments only. What runs made stays: .foundry holds the model registry and the dataset versions.
clean:
	rm -rf .venv .venv-serving .pytest_cache .mypy_cache .ruff_cache
