# Two commands do everything: `make demo` and `make test`. Each installs what is missing first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO := SEGNODE_CONFIG=deploy/demo/segnode.toml

.PHONY: help setup demo down test test-viewer gallery check bench lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 21

setup: $(STAMP) ## install what is missing: Debian packages, Orthanc in its own root, a venv

# pip is told where nothing is: this machine's own pip configuration decides.
$(STAMP): pyproject.toml requirements.lock
	@deploy/install.sh
	@test -x $(PYTHON) || { echo "setup: making the Python environment"; \
	  $$(command -v python3.11 || command -v python3) -m venv $(VENV); }
	@echo "setup: installing Python packages (a minute or two the first time)"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check \
	  --constraint requirements.lock --editable '.[dev]' 2> >(grep -v '^WARNING: Location' >&2)
	@touch $@

demo: setup ## a stand-in PACS pushes a chest CT; watch the segmentation come home
	@deploy/install.sh >/dev/null
	@$(DEMO) $(PYTHON) deploy/demo/demo.py run

down: ## stop the node and the stand-in PACS
	@test ! -x $(PYTHON) || $(DEMO) $(PYTHON) deploy/demo/demo.py down

# Where Chromium or OHIF cannot be had, tests/viewer is skipped and says so.
test: setup check ## everything, with real servers on ports of their own
	@deploy/install.sh
	@deploy/install-viewer.sh || echo "make test: tests/viewer will be skipped"
	@$(PYTHON) -m pytest --numprocesses 2 --dist loadfile

test-viewer: setup ## a radiologist's viewer (OHIF in Chromium) shows results in the right place
	@deploy/install-viewer.sh
	@$(PYTHON) -m pytest tests/viewer

gallery: setup ## docs/gallery.md: the demo's CT and its results as a viewer shows them
	@deploy/install-viewer.sh
	@$(PYTHON) -m tests.viewer.gallery

check: setup ## style, types, who imports whom
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

bench: setup ## seconds from the last C-STORE acknowledgement to the SEG in the PACS, by step
	@$(PYTHON) bench/end_to_end.py

lock: ## write requirements.lock from the environment as it is
	@$(PYTHON) -m pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock

clean: down ## remove what was made here: environment, Orthanc's root, working data
	rm -rf $(VENV) .orthanc .viewer var .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
