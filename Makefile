# make run        train the starter model that comes with unipo, and see its accuracy before and after
# make dev        install unipo and its development tools, nothing else
# make test       run every test           make test-core      those that need no optional package
# make lint       ruff                     make format         ruff, changing files
# make types      mypy                     make bench          speed and memory against peers
# make docs       write generated pages    make site           the documentation as a web site, in build/site
# make clean      remove the environment and everything built
#
# Nothing is needed but make and Python 3.11 or newer. Packages go into .venv, in the versions of constraints.txt.
# Variables: ARGS="..." for the command that is run, PIP_ARGS="..." for pip, PYTHON=..., VENV=...

usable = $(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do $(call usable,$$p) && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_ARGS)

# Test workers with several torch threads each fight over the cores.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help run dev test test-core lint format types docs site bench clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

run: $(VENV)/.installed
	$(BIN)/unipo train $(ARGS)

dev: $(VENV)/.installed-dev

test: $(VENV)/.installed-dev
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

# What needs no extra: optional packages are hidden from the tests, slow tests are left out.
test-core: $(VENV)/.installed-dev
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --core -m "not slow" $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python -m unipo.docs $(ARGS)

# Fails on a broken link, and on a public symbol without a docstring.
site: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict -f website/mkdocs.yml $(ARGS)
	@echo "open build/site/index.html"

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/run.py $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Each stamp is younger than the files that say what to install, so pip runs again only when they change.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing unipo into $(VENV) (minutes the first time, as torch is large)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing unipo and its development tools into $(VENV) (minutes the first time, as torch is large)"
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed $@

# Half an environment, left by a failure, would be taken for a whole one.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "unipo needs Python 3.11 or newer; none was found. Name one: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
