# Every target works alone in a fresh clone: python3 (3.11 or newer) and make are enough.
#   make demo PYTHON=python3.12                                        another interpreter
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu         the CPU build of torch
PYTHON      ?= python3
TORCH       ?= torch==2.13.0
TORCH_INDEX ?=
WORKERS     ?= logical

VENV  := .venv
BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip install --disable-pip-version-check
WHEEL := build/wheel
TESTS  = OMP_NUM_THREADS=1 $(BIN)/pytest
OLDER_TRITONS := 3.6.0 3.7.1

.PHONY: help setup demo test test-all test-rest older-triton servers coverage web lint wheel-check gpu gpu-check gpu-measure card clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         compress, predict and compare a few small networks"
	@echo "make test         run the tests, all but the slow ones"
	@echo "make test-all     run all tests: servers, browser runtime, every ahead-of-time kernel, older Tritons too"
	@echo "make lint         ruff, pyright, import-linter and the rules of the house"
	@echo "make servers      start Triton, MLServer and Ray Serve, ask each 1,000 requests at once, print a table"
	@echo "make coverage     run the tests and list the lines they do not reach"
	@echo "make web          run exported networks in the browser's runtime too (needs npm)"
	@echo "make wheel-check  build the wheel, look into it and import from it"
	@echo "make gpu          check the kernels on this machine's GPU, then measure them there"
	@echo "make clean        remove everything that was made, the environment too"

setup: $(VENV)/.dev

# torch first and alone: the second command then finds its range met and downloads no other build.
$(VENV)/.torch: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hrt needs Python 3.11 or newer as $(PYTHON); name another one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Downloading $(TORCH) into $(VENV), once: the index's default build, on Linux with CUDA, takes about 3 GB;" \
	  "the CPU build takes 0.2 GB: make TORCH_INDEX=https://download.pytorch.org/whl/cpu ..."
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@touch $@

$(VENV)/.cpu: $(VENV)/.torch pyproject.toml
	@echo "Installing hrt with ONNX Runtime into $(VENV): about 0.1 GB of packages"
	@$(PIP) -e '.[cpu]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo "Installing hrt and the tools of its tests into $(VENV): about 0.4 GB of packages"
	@$(PIP) -e '.[cpu,perf,dev]'
	@touch $@ $(VENV)/.cpu

demo: $(VENV)/.cpu
	@$(BIN)/python -m hrt.perf.demo

# One BLAS thread a worker, one worker a core; a file's tests share their fixtures.
test: $(VENV)/.dev
	@$(TESTS) tests -n $(WORKERS) --dist loadfile -m 'not slow and not server'

test-all: test test-rest

# Servers last and alone: a thousand requests at once leave no core for other tests.
test-rest: older-triton
	@$(TESTS) tests -n $(WORKERS) --dist loadfile -m 'slow and not server'
	@$(TESTS) tests -m server

# Every ahead-of-time kernel on the older Tritons too (3.6.0 is torch 2.11's, 3.7.1 torch 2.13's), whose compilers err in
# other places; `make test` runs the newest. 3.6.0's interpreter fails with numpy 2.4: there nothing else is run.
older-triton: $(OLDER_TRITONS:%=older-triton-%)

older-triton-%: $(VENV)/.dev
	@$(PIP) -q --no-deps --target build/triton-$* --upgrade triton==$*
	@PYTHONPATH=build/triton-$* $(TESTS) tests/kernels/test_aot.py -n $(WORKERS)
	@$(if $(filter 3.6.0,$*),true,PYTHONPATH=build/triton-$* $(TESTS) tests/kernels tests/runtime -n $(WORKERS) \
	  --dist loadfile -m 'not slow' --ignore tests/kernels/test_aot.py)

# Each server has an environment of its own, laid over this one (tests/servers).
servers: $(VENV)/.dev
	@$(BIN)/pytest tests/export/servers/test_servers.py --durations=10 --show-capture=no

coverage: $(VENV)/.dev
	@$(TESTS) tests -n $(WORKERS) --dist loadfile --cov --cov-report=term-missing:skip-covered

# Needs Node's npm and its registry; without, these tests are skipped and say so.
web: $(VENV)/.dev
	@$(BIN)/python -m hrt.export.other_runtimes.web
	@$(BIN)/pytest tests/export/other_runtimes

# import-linter reads folders, not mappings: it is shown a copy laid out as the wheel is.
lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@rm -rf build/lint && mkdir -p build/lint && cp -r hrt build/lint && cp -r kernels export perf build/lint/hrt
	@cd build/lint && $(CURDIR)/$(BIN)/lint-imports --config $(CURDIR)/pyproject.toml --no-cache --no-logo
	@$(BIN)/python tests/house_rules.py

# Built without isolation, so that nothing is downloaded; from nothing, so that no stale file slips in.
wheel-check: $(VENV)/.dev
	@rm -rf $(WHEEL) build/lib build/bdist* *.egg-info
	@$(BIN)/pyproject-build --wheel --no-isolation --outdir $(WHEEL) . > $(VENV)/wheel.log 2>&1 || { cat $(VENV)/wheel.log >&2; exit 1; }
	@rm -rf *.egg-info build/lib build/bdist*
	@$(BIN)/check-wheel-contents $(WHEEL)/*.whl
	@rm -rf build/unpacked && $(BIN)/python -m zipfile -e $(WHEEL)/*.whl build/unpacked
	@PYTHONPATH=build/unpacked $(BIN)/python -P tests/import_everything.py build/unpacked

# On a machine with an NVIDIA GPU, with that machine's own Python and CUDA build of torch: nothing is installed, the
# folders are only laid out as the wheel would. Correctness on the card first; measurements only if it is right.
CARD   := build/card
ON_CARD = PYTHONPATH=$(CARD) TRITON_DEFAULT_FP_FUSION=1
GPU    ?= $(shell nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr 'A-Z ' 'a-z-' | sed 's/[^a-z0-9-]//g')

gpu: gpu-check gpu-measure

gpu-check: card
	@$(ON_CARD) HRT_ON_CARD=1 $(PYTHON) -P -m pytest tests/card.py -q $(CARD_ARGS)

gpu-measure: card
	@$(ON_CARD) $(PYTHON) -P -m hrt.perf.bench.gpu_layers --out perf/results/$(GPU) $(GPU_ARGS)

card:
	@$(PYTHON) -P -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || { \
	  echo "make gpu: '$(PYTHON)' has no torch that sees a CUDA device; nothing was checked or measured." >&2; exit 2; }
	@rm -rf $(CARD) && mkdir -p $(CARD)/hrt
	@ln -s $(CURDIR)/hrt/* $(CURDIR)/kernels $(CURDIR)/export $(CURDIR)/perf $(CARD)/hrt/

clean:
	rm -rf $(VENV) .venv-servers build dist *.egg-info demo-out .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find hrt kernels export perf tests -name __pycache__ -type d -prune -exec rm -rf {} +
