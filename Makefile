# `make demo` runs the main job, `make test` all tests; each first makes .venv with what it needs.
PYTHON ?= python3
BIN := .venv/bin
DEMO := build/demo

.PHONY: demo test lint types docs notebooks benchmark clean

demo: .venv/.demo
	mkdir -p $(DEMO)
	$(BIN)/lensjax data fetch spelling --out $(DEMO)
	test -f $(DEMO)/study.yaml || cp experiments/pocket_zoo/demo.yaml $(DEMO)/study.yaml
	$(BIN)/lensjax plan $(DEMO)/study.yaml
	$(BIN)/lensjax run $(DEMO)/study.yaml
	@echo "Open $(DEMO)/study/report.html; put your own data into $(DEMO)/study.yaml."

test: .venv/.installed
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: .venv/.installed
	$(BIN)/mypy

docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: .venv/.installed
	$(BIN)/python -m pytest --nbmake -p no:cacheprovider notebooks

benchmark: .venv/.installed
	$(BIN)/python benchmarks/fit.py

.venv/.demo: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "LensJAX needs Python 3.11 or newer; name one with PYTHON=.")'
	test -d .venv || $(PYTHON) -m venv .venv
	@echo "Installing LensJAX with what it computes by, and the demo's data, into .venv:"
	$(BIN)/python -m pip install --editable '.[demo]'
	touch $@

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "LensJAX needs Python 3.11 or newer; name one with PYTHON=.")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build
