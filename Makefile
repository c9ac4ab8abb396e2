# Two targets: `make run` turns the wheel, `make test` proves it. Each sets up .venv first if it isn't there yet.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
export OMP_NUM_THREADS := 1

.PHONY: run test

run: $(VENV)/.installed
	$(BIN)/python -m flywheel.run $(ARGS)

test: $(VENV)/.installed $(VENV)/.chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2 tests --ignore tests/on_ray --ignore tests/page
	$(BIN)/python -m pytest -q -n 2 tests/page
	$(BIN)/python -m pytest -q tests/on_ray

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Flywheel needs Python 3.11, and $(PYTHON) is another one: call make PYTHON=python3.11 …"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# The page's tests drive a browser. One that is there already is taken.
$(VENV)/.chromium: $(VENV)/.installed
	$(BIN)/python -m tests.page.chromium
	touch $@
