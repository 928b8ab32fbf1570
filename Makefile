# Two commands: `make run` starts the server, `make test` checks everything. Both set themselves up and need no root.
#
#   make run ARGS="--set server.port=9000"     pass options to `voiceagent run`
#   make test TESTS=tests/kernels              run only some tests
#   make PYTHON=python3.12 run                 choose the interpreter (3.11 or newer)

VENV ?= .venv
ARGS ?=
TESTS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The first interpreter on the path that is new enough; `make PYTHON=...` overrides.
CANDIDATES := python3 python3.11 python3.12 python3.13 python3.14 python
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do if $$p -c '$(IS_NEW_ENOUGH)' >/dev/null 2>&1; then echo $$p; break; fi; done)

.PHONY: run test lint bench gpu-bench docs clean help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,5p'

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

# On a machine with a GPU, under ten minutes: tests marked `gpu`, then benchmarks. Nothing is installed and nothing fetched, so it uses the
# environment here if there is one, else the python3 that brings torch, triton, transformers, pytest and hypothesis.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
GPU_OUT ?= runs/gpu-bench
GPU_TESTS = $(shell grep -rlE 'pytest\.mark\.gpu' tests --include='test_*.py')

gpu-bench: export PYTHONPATH := .:kernels:pipelines
gpu-bench: export HF_HUB_OFFLINE := 1
gpu-bench: export PYTHONUNBUFFERED := 1
gpu-bench:
	@mkdir -p $(GPU_OUT)
	@$(GPU_PYTHON) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu-bench needs a CUDA device, and torch sees none")'
	@# One part that fails must not take the others with it; the last line fails if any did.
	@rm -f $(GPU_OUT)/failed
	timeout 110 $(GPU_PYTHON) -m pytest -q -m gpu -W default -p no:cacheprovider $(GPU_TESTS) > $(GPU_OUT)/tests.txt 2>&1 || echo tests >> $(GPU_OUT)/failed
	@tail -n 25 $(GPU_OUT)/tests.txt
	timeout 130 $(GPU_PYTHON) benchmarks/kernels.py --save $(GPU_OUT)/kernels.json || echo kernels >> $(GPU_OUT)/failed
	timeout 330 $(GPU_PYTHON) benchmarks/engine.py --device cuda --graphs --budget 270 --seconds 4 --save $(GPU_OUT)/engine.json --plot $(GPU_OUT)/engine.png || echo engine >> $(GPU_OUT)/failed
	@if [ -e $(GPU_OUT)/failed ]; then echo "failed: $$(tr '\n' ' ' < $(GPU_OUT)/failed)"; exit 1; fi

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
