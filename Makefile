# Every target works alone in a fresh clone: python3 (3.11 or newer) and make are enough.
#   make demo PYTHON=python3.12      another interpreter
PYTHON ?= python3
TORCH  ?= torch==2.13.0

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP   := $(BIN)/python -m pip install -qq --disable-pip-version-check
WHEEL := build/wheel

.PHONY: help setup demo test servers coverage web lint structure wheel-check gpu gpu-check gpu-measure card clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         compress, predict and compare a few small networks"
	@echo "make test         run the tests"
	@echo "make servers      start Triton, MLServer and Ray Serve, ask each 1,000 requests at once, print a table"
	@echo "make coverage     run the tests and list the lines they do not reach"
	@echo "make web          run exported networks in the browser's runtime too (needs npm)"
	@echo "make lint         ruff check, ruff format --check, pyright"
	@echo "make wheel-check  build the wheel, look into it and import from it"
	@echo "make gpu          check the kernels on this machine's GPU, then measure them there"
	@echo "make clean        remove everything that was made, the environment too"

setup: $(STAMP)

# torch first and alone: the second command then finds its range met and brings no CUDA packages.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hrt needs Python 3.11 or newer as $(PYTHON); name another one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) into $(VENV) (once, a few minutes)"
	@$(PIP) '$(TORCH)'
	@echo "Installing hrt and its tools into $(VENV)"
	@$(PIP) -e '.[cpu,perf,dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m hrt.perf.demo

test: $(STAMP)
	@$(BIN)/pytest tests

# Each server has an environment of its own, laid over this one (tests/servers); `make test` runs them, too.
servers: $(STAMP)
	@$(BIN)/pytest tests/test_servers.py --durations=10 --show-capture=no

coverage: $(STAMP)
	@$(BIN)/pytest tests --cov --cov-report=term-missing:skip-covered

# Needs Node's npm and its registry; without, these tests are skipped and say so.
web: $(STAMP)
	@$(BIN)/python -m hrt.export.web
	@$(BIN)/pytest tests/test_portable.py

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

structure: $(STAMP)
	@$(BIN)/pytest tests/test_structure.py --quiet

# Built without isolation, so that nothing is downloaded; from nothing, so that no stale file slips in.
wheel-check: $(STAMP)
	@rm -rf build hrt.egg-info
	@$(BIN)/pyproject-build --wheel --no-isolation --outdir $(WHEEL) . > $(VENV)/wheel.log 2>&1 || { cat $(VENV)/wheel.log >&2; exit 1; }
	@rm -rf hrt.egg-info
	@$(BIN)/check-wheel-contents $(WHEEL)/*.whl
	@PYTHONPATH="$$(echo $(WHEEL)/*.whl)" $(BIN)/python -P -c 'import hrt, hrt.kernels, hrt.export, hrt.perf, sys; \
	  stray = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "hrt" and ".whl/" not in m.__file__]; \
	  sys.exit("not imported from the wheel: " + ", ".join(stray) if stray else 0)'

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
	rm -rf $(VENV) .venv-servers build dist hrt.egg-info demo-out .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find hrt kernels export perf tests -name __pycache__ -type d -prune -exec rm -rf {} +
