# Two commands: `make run` starts the server, `make test` checks everything. Both set themselves up and need no root.
# `make train-builtin` makes the built-in model anew (docs/training.md), `make gpu-bench` measures on a GPU, `make bench` here.
#
#   make run ARGS="--set server.port=9000"     pass options to `voiceagent run`
#   make test TESTS=tests/kernels              run only some tests
#   make PYTHON=python3.12 run                 choose the interpreter (3.11 or newer)
#   make train-builtin DIALOGUES=FOLDER        with the corpora that it names, if you have them

VENV ?= .venv
ARGS ?=
TESTS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The first interpreter on the path that is new enough; `make PYTHON=...` overrides.
CANDIDATES := python3 python3.11 python3.12 python3.13 python3.14 python
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do if $$p -c '$(IS_NEW_ENOUGH)' >/dev/null 2>&1; then echo $$p; break; fi; done)

.PHONY: run test lint bench gpu-bench train-builtin docs clean help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,7p'

run: $(VENV)/.installed-run
	@exec $(BIN)/voiceagent run $(ARGS)

test: lint
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/kernels.py $(ARGS)

# On a machine with a GPU, under ten minutes: benchmarks and the tests of every kernel, the most valuable first. Nothing is installed and nothing
# fetched, so it uses the environment here if there is one, else the python3 that brings torch, triton, transformers, pytest and hypothesis.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
GPU_OUT ?= runs/gpu-bench

gpu-bench: export PYTHONUNBUFFERED := 1
gpu-bench:
	$(GPU_PYTHON) benchmarks/gpu.py --save $(GPU_OUT) $(ARGS)

# Data, training, export. What is there is kept and a run that has begun goes on, so that `make train-builtin LEG_MINUTES=8` is one leg
# of it and the same command the next. Without DEVICE a GPU is used where there is one, by a python3 that brings torch, tokenizers and
# safetensors, without network or installation. MINUTES is a budget of all legs together instead of tokens; give it again with every leg.
RUN ?= runs/builtin
RUN_DATA ?= $(RUN)-data
MODEL ?= $(RUN)-model
DIALOGUES ?=
DEVICE ?=
MINUTES ?=
LEG_MINUTES ?=
CAFE_COUNT ?= 16000
REHEARSAL_COUNT ?= 14000
SHARD_MB ?= 16
# What a GPU needs to be busy with so small a model, and ten times the positions that two cores see in two hours.
GPU_SETTINGS ?= rows_per_step=64 rows_per_forward=64 dtype=bfloat16 data_workers=12 tokens=200000000
CAN_TRAIN := import torch, tokenizers, safetensors
SEES_GPU := import sys, torch; sys.exit(not torch.cuda.is_available())

train-builtin: export PYTHONPATH := .:kernels:pipelines
train-builtin: export HF_HUB_OFFLINE := 1
train-builtin: export PYTHONUNBUFFERED := 1
train-builtin:
	@set -e; \
	if $(BIN)/python -c '$(CAN_TRAIN)' 2>/dev/null; then python=$(BIN)/python; \
	elif python3 -c '$(CAN_TRAIN); $(SEES_GPU)' 2>/dev/null; then python=python3; \
	else $(MAKE) $(VENV)/.installed-run; python=$(BIN)/python; fi; \
	device='$(DEVICE)'; \
	if [ -z "$$device" ]; then if $$python -c '$(SEES_GPU)'; then device=cuda; else device=cpu; fi; fi; \
	make_data() { name=$$1; shift; [ -d $(RUN_DATA)/$$name ] || { echo "writing dialogues: $$name"; rm -rf $(RUN_DATA)/part; \
		$$python -m "$$@" --out $(RUN_DATA)/part; mv $(RUN_DATA)/part $(RUN_DATA)/$$name; }; }; \
	make_data cafe voice_pipelines.cafe.dialogues --count $(CAFE_COUNT) --seed 1; \
	make_data rehearsal voice_pipelines.rehearsal --count $(REHEARSAL_COUNT) --seed 11; \
	if [ -e $(RUN)/state.pt ]; then how=--resume; \
	else how='--config dllm/configs/builtin.toml'; \
		if [ $$device = cuda ]; then for one in $(GPU_SETTINGS); do how="$$how --set $$one"; done; fi; fi; \
	$$python -m dllm train --data $(RUN_DATA)/cafe --data $(RUN_DATA)/rehearsal $(if $(DIALOGUES),--data $(DIALOGUES)) \
		--out $(RUN) --device $$device $$how $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(LEG_MINUTES),--leg-minutes $(LEG_MINUTES)) $(ARGS); \
	$$python -m dllm export --run $(RUN) --out $(MODEL) --shard-mb $(SHARD_MB) --record $(MODEL)/training

docs: $(VENV)/.installed-run
	$(BIN)/python -c 'from voiceagent.config_reference import configuration_reference as page; print(page(), end="")' > docs/configuration.md

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c '$(IS_NEW_ENOUGH)'; then \
		echo "Python 3.11 or newer is needed and none of '$(CANDIDATES)' is; name one: make PYTHON=/path/to/python3.11 run"; exit 1; fi
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than the pins it was made from, so a second `make run` starts at once.
$(VENV)/.installed-run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing pinned packages into $(VENV). This happens once and takes a few minutes."
	$(PIP) install --quiet -c constraints.txt -e '.[engine,local,remote]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing pinned packages and test tools into $(VENV). This happens once and takes a few minutes."
	$(PIP) install --quiet -c constraints.txt -e '.[engine,local,remote,test]'
	@touch $(VENV)/.installed-run $@
