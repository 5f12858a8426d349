# Two commands on a machine that has only Python >= 3.11, git and make:
#   make demo    train a tiny reasoning model on this CPU, export it, look at it
#   make test    all tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
INSTALLED := $(VENV)/installed-$(VERSION)
# JAX's compiler for NVIDIA GPUs, which needs none; apart, so that only the tests see it
COMPILER := $(VENV)/nvidia-compiler

.PHONY: demo test lint install clean aot gpu-check

demo: $(INSTALLED)  ## train, export and check a tiny model (a few minutes on 2 cores)
	$(BIN)/python -m jaxs1.demo

test: $(INSTALLED)  ## all tests; no GPU, no network
	PYTHONPATH=$(abspath $(COMPILER)) $(BIN)/python -m pytest

lint: $(INSTALLED)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

aot: $(INSTALLED)  ## compile all recipes for their hardware, check what they reach, write docs/plans.md
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[plan]'
	$(BIN)/python -m benchmarks.plans docs/plans.md

gpu-check: $(INSTALLED)  ## on an NVIDIA GPU: check and time decoding and training, write benchmarks/gpu/
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[cuda]'
	$(BIN)/python -m benchmarks.gpu_check

install: $(INSTALLED)  ## only create the environment

# A change of pyproject.toml or of PYTHON installs again; otherwise this is done once.
$(INSTALLED): pyproject.toml
	@echo "installing into $(VENV) for Python $(VERSION) (once; a few minutes)"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@[ "$$(uname)" != Linux ] || { \
	  version=$$($(BIN)/python -c 'import jaxlib; print(jaxlib.__version__)') && \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(COMPILER) \
	    jax-cuda13-plugin==$$version jax-cuda13-pjrt==$$version; }
	@touch $@

clean:  ## remove the environment and the demo
	rm -rf $(VENV) demo
