# `make` lists the targets. ARGS passes flags on: make ablation ARGS="--seeds 0 1", make test ARGS="-k unet".
PYTHON ?= python3
JOBS ?= 2
VENV ?= .venv
BIN := $(VENV)/bin
# A worker that is done takes tests from one that is not: no file of tests is as long as half of them all.
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: help ablation test test-extras faults fuzz cluster notebooks audit full lint helps pages smoke gpu
help:
	@echo "make ablation     set up, then compare upsampling layers with and without skip connections"
	@echo "make test         set up, then run the tests that need no extra and are not slow"
	@echo "make test-extras  set up with the extras, then run the tests that need one"
	@echo "make faults       set up, then bring about what goes wrong, and compare how it ends; ARGS=\"--quick\" is what CI runs"
	@echo "make fuzz         set up, then read 20,000 random broken inputs"
	@echo "make cluster      set up with the extras, then lose nodes of Ray and SLURM clusters that are this machine"
	@echo "make notebooks    set up with the extras, then run every notebook and try its exercises"
	@echo "make audit        set up with the extras, then ask whether a pinned version has a known vulnerability"
	@echo "make full         every test, fault, attack and kill, 1,000,000 random inputs, and docs/RELIABILITY.md of it"
	@echo "make lint         set up with the extras, then ruff check, ruff format --check and mypy"
	@echo "make gpu         what a CUDA GPU says, in 8 minutes, into experiments/results/gpu.md; needs no network, see tests/gpu"
	@echo "make helps        set up, then store what --help prints in experiments/shell/helps.json, after a change of a flag"
	@echo "make pages        set up, then write docs/architectures/, after a change of an architecture, its docstrings or its tests"
	@echo "make smoke        set up, then run the smallest ablation, for continuous integration"
	@echo "ARGS=... passes flags to ablation and the tests; JOBS=... tests at a time (2), 0 for one process"
	@echo "PYTHON=... names the interpreter (3.11 or newer) of a new environment, VENV=... its folder (.venv)"

ablation: $(VENV)/installed
	$(BIN)/python -m experiments.ablate_upsampling $(ARGS)

test: $(VENV)/installed
	$(PYTEST) -m "not slow" $(ARGS)

test-extras: $(VENV)/installed-dev
	$(PYTEST) -m "extra and not slow" $(ARGS)

faults: $(VENV)/installed
	$(BIN)/python -m tests.faults $(ARGS)

fuzz: $(VENV)/installed
	$(BIN)/python -m tests.fuzz --count 20000 $(ARGS)

cluster: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/cluster $(ARGS)

notebooks: $(VENV)/installed-dev
	$(PYTEST) tests/notebooks $(ARGS)

audit: $(VENV)/installed-dev
	$(BIN)/python tests/audit.py

full: $(VENV)/installed-dev
	$(PYTEST) $(ARGS)
	@mkdir -p build
	$(BIN)/python -m tests.fuzz --count 1000000 --record build/fuzz.json
	$(BIN)/python -m tests.faults --record docs/RELIABILITY.md --fuzz build/fuzz.json

lint: $(VENV)/installed-dev
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

helps: $(VENV)/installed
	$(BIN)/python tests/stored_helps.py

pages: $(VENV)/installed
	$(BIN)/python tests/stored_pages.py $(ARGS)

# With what is installed, where there is no environment: a machine with a GPU may have torch and no network.
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tests.gpu $(ARGS)

# The folder stays behind after a failure, for its logs.
smoke: $(VENV)/installed
	out=$$(mktemp -d) && \
	$(BIN)/python -m experiments.ablate_upsampling --data shapes --seeds 0 1 --epochs 1 --scale 0.5 --out "$$out/smoke" && \
	rm -r "$$out"

# The stamps are touched last, so that an interrupted installation is taken up again by the next call.
$(VENV)/installed: requirements.txt constraints.txt setup.cfg pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
			echo "SegLab needs Python 3.11 or newer; '$(PYTHON)' answers: $$($(PYTHON) --version 2>&1)." >&2; \
			echo "Name another interpreter, for example: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; \
			exit 1; \
		}; \
		echo "$(PYTHON) -m venv --clear $(VENV)"; \
		$(PYTHON) -m venv --clear $(VENV); \
	}
	$(BIN)/python -m pip install --requirement requirements.txt --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]"
	@touch $@
