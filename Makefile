# `make` lists the targets. ARGS passes flags on: make ablation ARGS="--seeds 0 1", make test ARGS="-k unet".
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help ablation test lint smoke
help:
	@echo "make ablation  set up, then compare upsampling layers with and without skip connections"
	@echo "make test      set up, then run the tests"
	@echo "make lint      set up, then ruff check, ruff format --check and mypy"
	@echo "make smoke     set up, then run the smallest ablation, for continuous integration"
	@echo "ARGS=... passes flags to ablation and test; PYTHON=... names the interpreter (3.11 or newer) of a new .venv"

ablation: .venv/installed
	$(BIN)/python -m experiments.ablate_upsampling $(ARGS)

test: .venv/installed
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/installed-dev
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

# The folder stays behind after a failure, for its logs.
smoke: .venv/installed
	out=$$(mktemp -d) && \
	$(BIN)/python -m experiments.ablate_upsampling --data shapes --seeds 0 1 --epochs 1 --scale 0.5 --out "$$out/smoke" && \
	rm -r "$$out"

# The stamps are touched last, so that an interrupted installation is taken up again by the next call.
.venv/installed: requirements.txt constraints.txt setup.cfg pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
			echo "SegLab needs Python 3.11 or newer; '$(PYTHON)' answers: $$($(PYTHON) --version 2>&1)." >&2; \
			echo "Name another interpreter, for example: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; \
			exit 1; \
		}; \
		echo "$(PYTHON) -m venv --clear .venv"; \
		$(PYTHON) -m venv --clear .venv; \
	}
	$(BIN)/python -m pip install --requirement requirements.txt --constraint constraints.txt --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]"
	@touch $@
