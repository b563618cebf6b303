# Two commands matter: `make demo` plays a story, `make test` checks everything. Both make the environment first, once.
# Needs: Python 3.11 or 3.12 with venv. Options: PYTHON=... picks the interpreter, PIP_ARGS="..." goes to pip install,
# GPU_PYTHON=... runs the GPU suite (default python3, with the torch that is there).

VENV   ?= .venv
OUT    ?= out
BIN    := $(VENV)/bin
ROOMS  := runtime training bridge kernels export
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt $(PIP_ARGS)
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench gpu-suite env clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

demo: $(VENV)/.made-play ## make the environment and play a story of nine shots on the embedded model
	@$(BIN)/shotstream demo --out $(OUT)/demo

test: $(VENV)/.made-dev links ## make the environment and run every check: ruff, mypy, pytest
	@lint=0; $(MAKE) --no-print-directory lint || lint=1; \
	$(BIN)/python -m pytest $(PYTEST_ARGS); tests=$$?; \
	[ $$lint = 0 ] || echo "make test: ruff or mypy found something, see above" >&2; \
	[ $$tests = 0 ] && [ $$lint = 0 ]

lint: $(VENV)/.made-dev links ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/mypy

bench: $(VENV)/.made-play ## measure the embedded model on this machine
	@mkdir -p $(OUT)
	@$(BIN)/shotstream bench --model tiny --json $(OUT)/bench.json

gpu-suite: links ## on a GPU: every check and benchmark that needs one, without network; results in $(OUT)/gpu-suite
	@$(or $(GPU_PYTHON),python3) tests/gpu_suite.py --out $(OUT)/gpu-suite $(SUITE_ARGS)

env: $(VENV)/.made-dev ## make the environment for work on the project

# mypy reads the rooms under the names they are installed by
.PHONY: links
links:
	@mkdir -p build/mypy/shotstream
	@for room in $(ROOMS); do ln -sfn ../../../$$room build/mypy/shotstream/$$room; done

$(VENV)/.made-venv:
	@if [ -z "$(PYTHON)" ]; then \
		echo "ShotStream needs Python 3.11 or 3.12, and none was found on PATH; install one or run make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || { \
		echo "ShotStream needs Python 3.11 or 3.12; $(PYTHON) is another version or cannot be run." >&2; exit 1; }
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV) || { \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install the package python3-venv." >&2; exit 1; }
	@touch $@

$(VENV)/.made-play: $(VENV)/.made-venv pyproject.toml constraints.txt
	@echo "Installing ShotStream and what it needs into $(VENV) (once) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.made-dev: $(VENV)/.made-play
	@echo "Installing what the tests need into $(VENV) (once) ..."
	@$(PIP) -e '.[dev,wan,train,export,rtx]'
	@touch $@

clean: ## remove the environment, build folders and outputs
	rm -rf $(VENV) build dist $(OUT) *.egg-info .pytest_cache .mypy_cache .ruff_cache
