# `make demo` and `make test` need Python 3.11 or newer and pip; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: demo test lint wheel clean

demo: $(VENV)/.all
	@if [ -f runs/demo/checkpoint.pt ]; then \
		$(BIN)/python -m agents.adagen --resume runs/demo; \
	else \
		$(BIN)/python -m agents.adagen --preset demo --out runs/demo; \
	fi

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) build dist *.egg-info

# The stamps: an environment is installed again when what it holds has changed.
$(VENV)/.all: pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("genenv needs Python >= 3.11, set PYTHON=" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[all]'
	touch $@

$(VENV)/.dev: $(VENV)/.all
	$(PIP) -e '.[all,dev]'
	touch $@
