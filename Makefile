# One set-up for everything: a virtual environment inside the clone, made anew when the project's own files change.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check mutations bench clean setup

setup: $(STAMP)

# torch first and by its exact version, so that no later requirement can pull another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --quiet --constraint constraints.txt --editable ".[test,check]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/qconvert demo --report demo-report

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Some forty faults, each put into a conversion of the shipped model, and what flags it (docs/mutations.md).
mutations: $(STAMP)
	$(BIN)/python -m tests.mutations docs/mutations.md

bench: $(STAMP)
	$(BIN)/python benchmarks/quantize_beside_cp.py
	$(BIN)/python benchmarks/reference_forward.py

clean:
	rm -rf $(VENV) demo-report .pytest_cache .mypy_cache .ruff_cache .hypothesis
