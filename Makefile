# Every target sets up what it needs in .venv, once per change of pyproject.toml.

PYTHON ?= python3
OUT ?= out/quickstart
WORKERS ?= 2
SAMPLE ?= 150
SEED ?= 0

VENV := .venv
BIN := $(VENV)/bin

# One process per worker is enough: without these, each takes every core. Tests of a
# file stay together, so that what they share is made and compiled once.
TEST_ENV := JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help test lint types pytest test-faults mutants demo docs clean
.NOTPARALLEL:

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

test: lint types pytest  ## Lint, check types, run doctests and all tests

lint: $(VENV)/.test  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test  ## Check types
	$(BIN)/mypy

pytest: $(VENV)/.test  ## Run doctests and all tests in WORKERS processes
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-faults: $(VENV)/.test  ## Inject every fault of docs/reliability.md, and all that takes long
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --all-faults \
	  -m "faults or exhaustive"

mutants: $(VENV)/.mutants  ## Change SAMPLE lines drawn by SEED and count what tests notice
	$(TEST_ENV) $(BIN)/python .ci/mutants.py --workers $(WORKERS) \
	  --sample $(SAMPLE) --seed $(SEED) --json out/mutants.json

demo: $(VENV)/.experiments  ## Compare eight methods on handwritten digits, into OUT
	$(BIN)/python -m experiments.quickstart --out $(OUT)

docs: $(VENV)/.docs  ## Build the site into docs/_build/html, its pages executed
	rm -rf docs/api/generated  # pages of names that are gone
	JAX_PLATFORMS=cpu $(BIN)/sphinx-build -W --keep-going -q -E docs docs/_build/html
	@echo "Written: docs/_build/html/index.html"

clean:  ## Remove the virtual environment, caches and outputs
	rm -rf $(VENV) out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf docs/_build docs/api/generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@command -v "$(PYTHON)" > /dev/null || \
	  { echo "pcjax needs Python >= 3.11, but there is no $(PYTHON)." \
	         "Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit( \
	  "pcjax needs Python >= 3.11, but $(PYTHON) is %d.%d. " % v[:2] + \
	  "Name another: make PYTHON=/path/to/python3.11")'
	"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

# The test extra includes the other, so that the demo finds everything in place.
$(VENV)/.test: pyproject.toml | $(VENV)/.created
	@echo "Installing pcjax and its test tools into $(VENV) (minutes, the first time)"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@ $(VENV)/.experiments

$(VENV)/.experiments: pyproject.toml | $(VENV)/.created
	@echo "Installing pcjax and its experiments into $(VENV) (minutes, the first time)"
	$(BIN)/python -m pip install --quiet --editable ".[experiments]"
	@touch $@

$(VENV)/.mutants: pyproject.toml | $(VENV)/.created
	@echo "Installing pcjax and what changes its lines into $(VENV) (minutes, the first time)"
	$(BIN)/python -m pip install --quiet --editable ".[mutants]"
	@touch $@ $(VENV)/.test $(VENV)/.experiments

$(VENV)/.docs: pyproject.toml | $(VENV)/.created
	@echo "Installing pcjax and what builds its docs into $(VENV) (minutes, the first time)"
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@
