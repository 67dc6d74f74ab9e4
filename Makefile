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

.PHONY: help setup demo test test-all test-rest older-triton servers coverage web lint figures docs wheel gpu gpu-pack clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         compress, predict and compare a few small networks"
	@echo "make test         run the tests, all but the slow ones"
	@echo "make test-all     run all tests: servers, browser runtime, every ahead-of-time kernel, older Tritons too"
	@echo "make lint         ruff, pyright, import-linter and the rules of the house"
	@echo "make docs         build the pages into build/site, without a network; a broken link ends it"
	@echo "make servers      start Triton, MLServer and Ray Serve, ask each 1,000 requests at once, print a table"
	@echo "make coverage     run the tests and list the lines they do not reach"
	@echo "make web          run exported networks in the browser's runtime too (needs npm)"
	@echo "make figures      measure the networks of docs/results/operators.md and write its figures"
	@echo "make wheel        build sdist and wheel into $(WHEEL), look into them, import and run the wheel alone"
	@echo "make gpu-pack     make what a machine with a GPU needs: artifacts, answers, compiled kernels (no GPU)"
	@echo "make gpu          use BUDGET=420 seconds of this machine's GPU by worth: check, then measure, into OUT"
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

$(VENV)/.docs: $(VENV)/.dev
	@echo "Installing what builds the pages into $(VENV): about 0.1 GB of packages"
	@$(PIP) -e '.[cpu,perf,dev,docs]'
	@touch $@

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
	@$(BIN)/pytest tests/export/other_runtimes tests/architectures

# import-linter reads folders, not mappings: it is shown a copy laid out as the wheel is.
lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@rm -rf build/lint && mkdir -p build/lint && cp -r hrt build/lint && cp -r kernels export perf build/lint/hrt
	@cd build/lint && $(CURDIR)/$(BIN)/lint-imports --config $(CURDIR)/pyproject.toml --no-cache --no-logo
	@$(BIN)/python tests/house_rules.py

# Neural operators, images, attention, ensembles beside every method. For a machine that does nothing else.
FIGURES = build/results/operators.json
figures: $(VENV)/.dev
	@OMP_NUM_THREADS=2 $(BIN)/python -m hrt.perf run --tol 1e-2 1e-3 --json $(FIGURES) \
	  --workload fno unet-poisson cnn-poisson transformer-pendulum pinn-ensemble
	@$(BIN)/python -m hrt.perf table $(FIGURES) --methods --into docs/results/operators.md \
	  --summary perf/results/operators.json

# Strict: a broken link, an undocumented public name or a page that no menu names ends it.
docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean
	@echo "Open build/site/index.html; the search works where it is served: python3 -m http.server -d build/site"

# Built without isolation, so that nothing is downloaded; from nothing, so that no stale file slips in. The wheel is made
# from the sdist, so that both are whole; what is imported and run is the wheel, where nothing of this checkout is.
wheel: $(VENV)/.dev
	@rm -rf $(WHEEL) build/lib build/bdist* build/unpacked *.egg-info
	@$(BIN)/python -m build --no-isolation --outdir $(WHEEL) . > $(VENV)/wheel.log 2>&1 || { cat $(VENV)/wheel.log >&2; exit 1; }
	@rm -rf *.egg-info build/lib build/bdist*
	@$(BIN)/check-wheel-contents $(WHEEL)/*.whl
	@$(BIN)/python -m twine check --strict $(WHEEL)/*
	@$(BIN)/python -m zipfile -e $(WHEEL)/*.whl build/unpacked
	@PYTHONPATH=build/unpacked $(BIN)/python -P tests/import_everything.py build/unpacked
	@$(BIN)/python -P tests/wheel_alone.py build/unpacked
	@ls $(WHEEL)/*

# What can be made without a GPU, by the Python, torch and Triton of the machine that has one: kernels that were
# compiled for another one are not found there. The stub card of the tests stands for the GPU.
CARD_PYTHON ?= python3.12
CARD_TORCH  ?= torch==2.11.0
CARD_ENV    := build/card-env

gpu-pack: $(CARD_ENV)/.ready
	@OMP_NUM_THREADS=1 $(CARD_ENV)/bin/python perf/gpu pack

$(CARD_ENV)/.ready: pyproject.toml
	@$(CARD_PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make gpu-pack: '$(CARD_PYTHON)' cannot make environments; name the card's Python: CARD_PYTHON=..." >&2; exit 2; }
	@echo "Downloading $(CARD_TORCH) for $(CARD_PYTHON) into $(CARD_ENV), once: about 3 GB with CUDA and Triton"
	@$(CARD_PYTHON) -m venv $(CARD_ENV)
	@$(CARD_ENV)/bin/python -m pip install --disable-pip-version-check -q '$(CARD_TORCH)'
	@$(CARD_ENV)/bin/python -m pip install --disable-pip-version-check -q -e '.[cpu]' pytest pytest-xdist
	@touch $@

# On the machine with the GPU, with its own Python, torch and Triton: nothing is installed, nothing compiled at length.
BUDGET ?= 420
OUT    ?= build/gpu

gpu:
	@$(PYTHON) perf/gpu run --budget $(BUDGET) --out $(OUT) $(GPU_ARGS)

clean:
	rm -rf $(VENV) .venv-servers build dist *.egg-info demo-out .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find hrt kernels export perf tests -name __pycache__ -type d -prune -exec rm -rf {} +
