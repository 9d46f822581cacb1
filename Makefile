# `make demo` and `make test` do everything on a fresh Debian or Ubuntu machine; see `make help`.
ARGS ?=
PYTHON := .venv/bin/python
TEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(PYTHON) -m pytest -q
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo test lint learning
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## everything that the other targets need; a second run takes a second
	@bash .ci/bootstrap

demo: setup  ## the main job: shipped VLA, residual RL, report (ARGS="name=x seed=7")
	@.venv/bin/vla-rl demo $(ARGS)

test: setup  ## the test suite (ARGS="-k replay"); what runs in real time (tests/real) after the rest
	@$(TEST) -m "not learning and not realtime" -n auto --dist loadfile --no-loadscope-reorder $(ARGS) || [ $$? -eq 5 ]
	@$(TEST) -m "not learning and realtime" $(ARGS) || [ $$? -eq 5 ]

learning: setup  ## the long learning tests
	@$(TEST) -m learning $(ARGS)

lint: setup  ## style, types and import contracts
	@.venv/bin/ruff check . && .venv/bin/ruff format --check .
	@.venv/bin/pyright --pythonpath $(PYTHON)
	@.venv/bin/lint-imports
