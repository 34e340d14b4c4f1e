# Everything a person does here. Each target does its own set-up, from a bare machine
# with Python 3.11 or newer and make.
#
#   make help         this list
#   make quickstart   train, assess, sign, admit, build, serve, and one sealed request
#   make test         the whole test suite; ARGS="tests/security -x" for a part
#   make test-fast    without slow tests
#   make serve        serve what quickstart built   PORT=3000
#   make demo         a page that seals its own requests, on 127.0.0.1:8000
#   make lint         ruff, mypy --strict, import contracts
#   make docs         the site of the documentation, into build/site
#   make bench        the benchmarks, and an entry of their history
#   make format       what ruff can fix
#   make interop      what needs heavy installs, a part at a time: exporters, images,
#                     clusters, ...; make interop-PART for one; not in CI
#   make wheels       the wheels of the client and of the toolkit, into dist
#   make lock         compile requirements/*.in
#   make clean        remove the environment and the quickstart's state

PYTHON ?= python3
PORT ?= 3000
VENV := .venv
INTEROP := .venv-interop
PARTS := browser exporters grpc image kubernetes mlops oci otlp ray redis toolkit tpm verifiers
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
HOME_DIR := .sealgate

export SEALGATE_HOME := $(CURDIR)/$(HOME_DIR)
export BENTOML_HOME := $(CURDIR)/$(HOME_DIR)/bentoml
export BENTOML_DO_NOT_TRACK := True
# uv reads none of pip's settings.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: help quickstart serve demo test test-fast lint format docs bench interop wheels lock clean \
  $(PARTS:%=interop-%)
.DELETE_ON_ERROR:

# The list at the top of this file.
help:
	@sed -n 's/^#   make/make/p' Makefile

quickstart: $(VENV)/.toolkit
	@$(PY) examples/quickstart.py

serve: $(VENV)/.toolkit
	@test -e $(HOME_DIR)/profile.json || \
	  { echo "error: nothing to serve yet; run 'make quickstart' first" >&2; exit 2; }
	@exec $(PY) -m security serve sealgate:latest --port $(PORT)

JS_CLIENT := clients/js/dist/sealgate.min.js
demo: $(VENV)/.toolkit $(JS_CLIENT)
	@exec $(PY) examples/demo/demo.py $(ARGS)

$(JS_CLIENT): clients/js/package-lock.json $(wildcard clients/js/src/*.ts)
	cd clients/js && npm ci --silent && npm run --silent build

# A file's tests stay on one worker, so that they share the servers they start; each worker
# has a core, so that a second thread of torch would only be in the way.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --dist loadfile

test: $(VENV)/.dev
	$(PYTEST) $(ARGS)

test-fast: $(VENV)/.dev
	$(PYTEST) -m "not slow" $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

# The theme says at each start that it has a successor: docs/decisions/0132 has when.
docs: build/notebooks/.made
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet -f website/mkdocs.yml
	@echo "build/site/index.html; with its search: python3 -m http.server -d build/site"

# They are run again when they change, or after `make clean`.
build/notebooks/.made: $(VENV)/.docs $(wildcard examples/notebooks/*.py)
	OMP_NUM_THREADS=1 $(PY) -m website.notebooks
	@touch $@

bench: $(VENV)/.dev
	$(PY) -m benchmarks

# A part has tests in tests/interop/PART; what it installs beside the project's own
# environment stands in requirements/interop-PART.txt (Python, in an environment that the
# tests find by INTEROP_PART) and in tests/interop/PART/packages.txt (Debian).
# RECORD=1 keeps what the exporters gave, as results.json and as the table of
# docs/exporters.md.
interop: $(PARTS:%=interop-%)

$(PARTS:%=interop-%): interop-%: $(VENV)/.dev
	@test ! -e requirements/interop-$*.txt || $(MAKE) --no-print-directory $(INTEROP)/$*/.made
	@test ! -e tests/interop/$*/packages.txt || tests/interop/packages.sh tests/interop/$*/packages.txt
	OMP_NUM_THREADS=1 INTEROP=$* INTEROP_PART=$(CURDIR)/$(INTEROP)/$* RECORD=$(RECORD) \
	  $(PY) -m pytest tests/interop/$* $(ARGS)

wheels: $(VENV)/.dev
	$(PY) -m hatchling build -t wheel -d $(CURDIR)/dist
	cd packaging/toolkit && $(CURDIR)/$(PY) -m hatchling build -t wheel -d $(CURDIR)/dist

# The lock files name no package index, and torch no particular build of it.
PIP_COMPILE := $(VENV)/bin/pip-compile --quiet --allow-unsafe --strip-extras \
  --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
  --no-emit-trusted-host
lock: $(VENV)/.dev
	$(VENV)/bin/uv pip compile requirements/serve.in -o requirements/serve.txt \
	  --generate-hashes --universal --python-version 3.11 --no-emit-index-url \
	  --no-annotate --no-header --quiet
	$(PIP_COMPILE) requirements/toolkit.in -o requirements/toolkit.txt
	$(VENV)/bin/uv pip compile requirements/scanner.in -o requirements/scanner.txt \
	  --generate-hashes --universal --python-version 3.11 --no-emit-index-url \
	  --no-annotate --no-header --quiet
	$(PIP_COMPILE) requirements/dev.in -o requirements/dev.txt
	$(PIP_COMPILE) requirements/docs.in -o requirements/docs.txt
	for part in requirements/interop-*.in; do \
	  $(VENV)/bin/uv pip compile $$part -o $${part%.in}.txt --python-version 3.11 \
	    --no-emit-index-url --no-annotate --no-header --quiet || exit 1; done
	sed -i 's/^\(torch==[0-9.]*\)+.*/\1/' requirements/toolkit.txt \
	  requirements/interop-exporters.txt

clean:
	rm -rf $(VENV) $(INTEROP) $(HOME_DIR) .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache build/notebooks build/site

# Each stamp is one layer of the environment, made anew when its lock file changes.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; set PYTHON=..." >&2; exit 2; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.serve: requirements/serve.txt $(VENV)/.python
	@echo "installing the serving requirements"
	@$(PIP) install --require-hashes -r requirements/serve.txt
	@touch $@

$(VENV)/.toolkit: requirements/toolkit.txt pyproject.toml $(VENV)/.serve
	@echo "installing the toolkit (torch, opacus, ART)"
	@$(PIP) install -r requirements/toolkit.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.toolkit
	@echo "installing the test and lint tools"
	@$(PIP) install -r requirements/dev.txt
	@touch $@

$(VENV)/.docs: requirements/docs.txt $(VENV)/.dev
	@echo "installing what builds the site"
	@$(PIP) install -r requirements/docs.txt
	@touch $@

$(INTEROP)/%/.made: requirements/interop-%.txt $(VENV)/.dev
	@echo "making $(INTEROP)/$*"
	@$(VENV)/bin/uv venv --quiet --clear --python $(PY) $(INTEROP)/$*
	@$(VENV)/bin/uv pip install --quiet --python $(INTEROP)/$* -r requirements/interop-$*.txt
	@touch $@
