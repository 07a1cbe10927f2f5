# TransferMRI from a clone: `make demo` shows the whole job, `make test` checks the code.
#
#   PYTHON=python3.13 make demo       another Python (3.11 or newer)
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo
#                                     PyTorch without CUDA: a far smaller download on Linux

PYTHON ?= python3
DEMO_STEPS ?= 60
# Two files at a time on two processors; steps of the app bring their own threads.
# Longest files first, in the order of tests/conftest.py.
PYTEST_ARGS ?= --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
LOCK_ARGS ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := .venv/bin
# A stamp is named after the content that it stands for: a touched file installs nothing again.
key = $(shell cat $(1) pyproject.toml | cksum | cut -d ' ' -f 1)
RUNTIME := .venv/runtime-$(call key,requirements.lock)
TEST := .venv/test-$(call key,requirements.lock requirements-test.lock)

.PHONY: help install demo test fast robustness lint lock image
.DELETE_ON_ERROR:

help:  ## what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

install: $(RUNTIME)  ## the environment in .venv

demo: $(RUNTIME)  ## simulate five people, preprocess, fine-tune, apply; everything under demo/
	test -e demo/bids/participants.tsv || { rm -rf demo/bids; \
	  $(BIN)/transfermri-simulate demo/bids --participants 5 --seed 1; }
	$(BIN)/transfermri demo/bids demo/out participant
	$(BIN)/transfermri demo/bids demo/out group --steps $(DEMO_STEPS)
	$(BIN)/transfermri demo/bids demo/out participant
	$(BIN)/python benchmarks/truth.py demo/bids demo/out
	@printf '\nOpen in a browser:\n'
	@find demo/out -maxdepth 1 -name '*.html' | sort | sed 's/^/  /'

test: lint  ## lint, types, layers, then pytest
	$(BIN)/python -m pytest $(PYTEST_ARGS) --durations=15

fast: lint  ## what a developer runs at every change: lint, types, layers and the quick tests
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m 'not whole and not slow'

robustness: $(TEST)  ## long checks against bad input, one line each (two hours)
	$(BIN)/python -m tests.robustness

lint: $(TEST)  ## everything of `make test` but pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(TEST)  ## resolve pyproject.toml anew (LOCK_ARGS=--upgrade for the newest versions)
	$(call compile,requirements-test.lock,--extra test)
	$(call compile,requirements.lock,--constraint requirements-test.lock)

image:  ## the container's CPU variant (docker)
	docker build --build-arg VARIANT=cpu --tag transfermri:cpu .

$(RUNTIME): | $(BIN)/python
	$(call install_from,requirements.lock)
	touch $@

# The test environment holds the runtime one.
$(TEST): | $(BIN)/python
	$(call install_from,requirements-test.lock)
	touch $@ $(RUNTIME)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "TransferMRI needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv

# The lock files hold the build backend too, so nothing is fetched unpinned for the last step.
define install_from
rm -f .venv/runtime-* .venv/test-*
$(BIN)/python -m pip install --requirement $(1)
$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
endef

# A local version (+cpu) exists on PyTorch's own index only; without it pip finds any build.
define compile
$(BIN)/pip-compile --quiet --no-header --no-annotate --strip-extras --allow-unsafe \
  --no-emit-options --no-emit-index-url --no-emit-find-links --build-deps-for editable \
  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(LOCK_ARGS) $(2) \
  --output-file $(1) pyproject.toml
{ printf '%s\n' \
    '# Resolved from pyproject.toml on Python 3.11; written by `make lock`, not by hand.' \
    '# PyTorch stands here as its CPU build needs it. Where pip picks a CUDA build instead, it adds' \
    '# the NVIDIA packages that this build requires.'; \
  sed -e '/^#/d' -e '/^$$/d' -e 's/+cpu$$//' $(1); } > $(1).new
mv $(1).new $(1)
endef
