# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv once and keep it; PYTHON names the interpreter.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
OPTIONAL ?= bitsandbytes
TESTS ?=
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
STAMP := $(VENV)/.installed
PEERS ?= .venv-peers
PEERS_CONSTRAINTS := ultragist_rag/evaluation/peers/constraints.txt
PEERS_PIP := $(PEERS)/bin/python -m pip install --quiet --constraint $(PEERS_CONSTRAINTS)
PIP := $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS)

.PHONY: demo test slow check lint format bench peers clean

demo: $(STAMP)
	$(BIN)/ultragist-rag demo

test: $(STAMP)
	$(PYTEST) $(TESTS)

slow: $(STAMP)
	$(PYTEST) -m slow

check: lint test

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Speed with the bundled model on the CPU, in less than ten minutes; then docs/performance.md from all result files.
bench: $(STAMP)
	$(BIN)/python -m benchmarks run --suite all --model-shape bundled --device cpu --quick
	$(BIN)/python -m benchmarks report

# torch goes first and by its exact version: a range would let pip take another build of it.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' $(CONSTRAINTS))
	$(PIP) --editable '.[all,dev]'
	@test -z '$(OPTIONAL)' || $(PIP) $(OPTIONAL) || echo 'Not installed: $(OPTIONAL). Its tests are skipped.'
	@touch $@

# Other compressors, which need older libraries than ours, in an environment of their own.
peers: $(PEERS)/.installed

$(PEERS)/.installed: $(PEERS_CONSTRAINTS)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS_PIP) $$(grep '^torch==' $(PEERS_CONSTRAINTS))
	$(PEERS_PIP) kvpress llmlingua
	@touch $@

clean:
	rm -rf $(VENV) dist build .ultragist-demo
