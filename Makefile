# Two commands on a fresh machine: `make demo` runs the main job on real input, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check bench bench-peers docs prove soak clean

demo: $(VENV)/.ready
	$(BIN)/python examples/real_package/demo.py

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 4

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,demo]'
	touch $@

clean:
	rm -rf $(VENV) build dist site bench/out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

bench: $(VENV)/.ready
	$(BIN)/python -m bench

bench-peers: $(VENV)/.ready
	bench/peers.sh $(BIN)/python

docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python docs/pages.py
	$(BIN)/zensical build --clean

prove: $(VENV)/.ready
	$(BIN)/python -m tests.faults

soak: $(VENV)/.ready
	$(BIN)/python -m tests.soak
