# golf's chores. PYTHON chooses the interpreter that the environment is made with.
PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
PIP_FLAGS ?=
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml constraints.txt $(shell find golf conf hydra_plugins -type f -not -name '*.pyc' 2>/dev/null)
ARGS ?=
PYTEST = $(BIN)/python -m pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -p no:cacheprovider
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help install train test test-slow test-all test-nightly test-gpu test-slurm test-faults test-hydra-next lint types format dev clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --upgrade pip

# Tests run the installed wheel from an empty folder, so the environment follows the sources.
$(STAMP): $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --constraint constraints.txt '.[dev]'
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --force-reinstall --no-deps .
	@touch $(STAMP)

install: $(STAMP)  ## make .venv with golf in it

train: $(STAMP)  ## train and score the quickstart model: two minutes on two cores (ARGS="…" adds overrides)
	$(BIN)/golf train $(ARGS)

# One thread a process: tests run in parallel, and threads of theirs would only wait for each other.
test: $(STAMP)  ## the test suite, without slow and GPU tests
	cd "$$(mktemp -d)" && OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) --dist worksteal -m "not slow and not gpu and not slurm and not nightly" $(CURDIR)/tests $(ARGS)

test-slow: $(STAMP)  ## the tests over ten seconds: the quickstart against a trigram
	cd "$$(mktemp -d)" && OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) -m "slow and not gpu and not slurm and not nightly" $(CURDIR)/tests $(ARGS)

test-all: test test-slow  ## both

test-nightly: $(STAMP)  ## over 100,000 mutated files of every kind that golf reads (GOLF_FUZZ=… of each kind)
	cd "$$(mktemp -d)" && OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) -m nightly $(CURDIR)/tests $(ARGS)

test-gpu: $(STAMP)  ## the tests that need a CUDA device, and the ten that took longest
	cd "$$(mktemp -d)" && $(PYTEST) -m gpu --durations=10 $(CURDIR)/tests $(ARGS)

test-slurm: $(STAMP)  ## hydra/launcher=slurm on a real Slurm: installs it (as root), starts it, stops it
	tests/slurm/run.sh $(BIN)/python $(ARGS)

lint: $(STAMP)  ## style, and the import rule of the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(STAMP)  ## mypy on the package
	$(BIN)/mypy golf

format: $(STAMP)  ## rewrite files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dev: $(VENV)/bin/python  ## an editable installation and the commit hooks, for working on golf
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --constraint constraints.txt --editable '.[dev]'
	@[ ! -d .git ] || $(BIN)/pre-commit install

clean:  ## remove the environment and every generated folder but runs
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# The next Hydra, unpacked beside the environment: configs compose, mistakes are told, a sweep runs.
HYDRA_NEXT ?= 1.4.0rc3
test-faults: $(STAMP)  ## runs killed 50 times on purpose, and told to end 12 times: half an hour on two cores
	cd "$$(mktemp -d)" && $(BIN)/python $(CURDIR)/benchmarks/faults.py 50 && $(BIN)/python $(CURDIR)/benchmarks/faults.py 12 --signals

test-hydra-next: $(STAMP)  ## configs, mistakes and a smoke sweep on the next Hydra (HYDRA_NEXT=1.4.0rc3)
	$(BIN)/python -m pip install $(PIP_FLAGS) --quiet --upgrade --target $(VENV)/hydra-next hydra-core==$(HYDRA_NEXT)
	cd "$$(mktemp -d)" && PYTHONPATH=$(abspath $(VENV))/hydra-next OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) \
		$(CURDIR)/tests/conf $(CURDIR)/tests/unit/test_compose.py $(CURDIR)/tests/cli/test_mistakes.py \
		"$(CURDIR)/tests/cli/test_train_command.py::test_a_sweep_over_ones_own_technique" $(ARGS)
