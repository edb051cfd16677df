# Every target makes the virtual environment on first use, and is quick afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export LIMBECK_DATA ?= $(abspath ../shared/data)

.PHONY: pilot digits test test-slow lint types bench docs clean

$(VENV)/.core: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing (a few minutes the first time) …"
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@$(PIP) --editable '.[dev]'
	@touch $@

pilot: $(VENV)/.core  ## The embedded example: teachers, students and a report on UCI Adult
	@$(BIN)/limbeck pilot example:adult

digits: $(VENV)/.core  ## The second example: digits with a shortcut and wrong labels
	@$(BIN)/limbeck pilot example:digits_shortcut

test: $(VENV)/.dev  ## The tests, those marked slow left out
	@$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-slow: $(VENV)/.dev  ## Only the slow ones
	@$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.dev
	@$(BIN)/ruff check src tests benchmarks
	@$(BIN)/ruff format --check src tests benchmarks

types: $(VENV)/.dev
	@$(BIN)/mypy

bench: $(VENV)/.dev  ## The quick benchmarks; docs/benchmarks.md names the long ones
	@$(BIN)/python benchmarks/loop_overhead.py

docs: $(VENV)/.dev  ## Regenerate what the docs take from the code
	@$(BIN)/python tools/make_docs.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
