# make quickstart and make test do everything on a fresh machine; `make help` lists the rest.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= 2
TEST   := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=25

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-fast test-gpu lint types bench docs-check docs check clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "unlearn needs Python 3.11 or newer; found $$($(PYTHON) --version). Set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(grep -i '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,postgres]'
	@touch $@

install: $(READY)  ## make .venv with the tested versions

quickstart: $(READY)  ## forget ten entities of the embedded world with five methods, and report
	$(BIN)/unlearn run configs/quickstart.yaml
	$(BIN)/unlearn compare runs/quickstart --out runs/quickstart/report.html

test: $(READY)  ## every test, in JOBS processes
	$(TEST)

test-fast: $(READY)  ## tests that take under three minutes together
	$(TEST) -m 'not slow'

test-gpu: $(READY)  ## tests for a machine with a CUDA device, in JOBS processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/gpu

lint: $(READY)  ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)  ## mypy
	$(BIN)/mypy

bench: $(READY)  ## cost of a step and of an evaluation: CPU seconds with one thread, peak memory
	$(BIN)/python experiments/bench/bench.py

docs: $(READY)  ## write the generated parts of README.md
	$(BIN)/unlearn list --readme README.md

docs-check: $(READY)  ## fail when a generated part of README.md is out of date
	$(BIN)/unlearn list --readme README.md --check

check: lint types docs-check test  ## everything CI runs, and more

clean:  ## remove what make made (not runs/)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
