# `make help` lists the targets. Everything runs in .venv, which `make install` makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_CPU ?= 2.13.0
STAMP := $(VENV)/.installed

.PHONY: help install fix check test faults demo proto clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(STAMP)  ## make .venv and install Baton with everything it needs

# Without a GPU the CPU build of torch is installed first: a bare `torch` would pull gigabytes of CUDA libraries.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || (apt-get update -q && apt-get install -qy python3-venv && $(PYTHON) -m venv $(VENV))
	$(BIN)/python -m pip install -q --upgrade pip
	@command -v nvidia-smi >/dev/null 2>&1 || $(BIN)/python -m pip install -q torch==$(TORCH_CPU)
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

proto:  ## regenerate the gRPC stubs from wire/proto
	$(BIN)/python -m grpc_tools.protoc -I wire/proto --python_out=wire --pyi_out=wire --grpc_python_out=wire wire/proto/baton_wire/pb/*.proto

fix: install  ## format and mend what can be mended
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

check: install  ## ruff, mypy strict, import-linter
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install  ## the whole suite, then the branch coverage of the pure modules
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report= --durations 10
	$(BIN)/python tools/pure.py coverage

TIMES ?= 10
faults: install  ## every fault of the table against real processes under load, TIMES rounds each; the figures
	cd tests && PYTHONPATH=. ../$(BIN)/python -m faults --times $(TIMES) --json faults/results.json $(ARGS)

demo: install  ## prefill, decode and gateway answer real requests
	$(BIN)/baton demo

clean:  ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
