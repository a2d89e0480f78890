# Everything that is done from the shell. `make` alone lists the targets.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

PYTHON   ?= $(shell command -v python3.11 || command -v python3)
VENV     ?= .venv
DATA_DIR := $(or $(LOCKSTEP_DATA_DIR),.lockstep)
BIN      := $(VENV)/bin
LOCKSTEP := $(BIN)/lockstep
READY    := $(VENV)/.ready
JARS     := $(DATA_DIR)/.jars-ready

export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE ?= copy

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: demo
demo: setup ## the main job, from an empty directory to a reconciled report; leaves the stack up
	@$(LOCKSTEP) demo

.PHONY: up
up: setup ## start the local stack
	@$(LOCKSTEP) up

.PHONY: down
down: ## stop the local stack; its data stays
	@if [ -x $(LOCKSTEP) ]; then $(LOCKSTEP) down; else echo "nothing is installed in $(VENV), so nothing is running"; fi

.PHONY: test
test: setup lint chromium ## lint, then the tests of every part, on the real engines
	@$(BIN)/python -m pytest -m "not faults"

.PHONY: test-e2e
test-e2e: setup chromium ## whole jobs through both layers as a user runs them, the demo too
	@$(BIN)/python -m pytest tests/e2e

.PHONY: test-faults
test-faults: setup ## the speed layer cut off, killed and misled on its way, the same numbers after all
	@$(BIN)/python -m pytest -m faults tests/integration

.PHONY: test-cluster
test-cluster: setup ## each process killed in the middle of what it does; Flink and Spark clusters of several processes (downloads Flink, once)
	@$(BIN)/python -m infra.flink_cluster install
	@$(BIN)/python -m pytest tests/faults tests/cluster

.PHONY: lint
lint: $(READY) ## style, formatting, types, import direction
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(MAKE) type
	@$(BIN)/lint-imports

.PHONY: type
type: $(READY) ## types of the packages that decide things
	@$(BIN)/mypy

.PHONY: bench
bench: setup ## speed, freshness, growth and backpressure of the speed layer, the batch layer by day, range and size, sketches; PROFILE=1 adds a flame graph of the workers
	@missed=0; for name in "speed $(if $(PROFILE),--profile)" freshness growth backpressure \
	  batch batch-range batch-growth sketches; do \
	  $(LOCKSTEP) bench $$name || missed=1; done; exit $$missed

.PHONY: docs
docs: $(READY) ## renew the catalog reference and its JSON Schema from the typed model
	@$(BIN)/python -m orchestration.catalog_reference docs

.PHONY: lock
lock: $(READY) ## renew requirements.lock from pyproject.toml, with hashes and without addresses
	@$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --quiet --output-file requirements.lock
	@for lock in infra/flink.lock infra/flink-build.lock; do \
	  sed -n 's/^\([^ ]*==[^ ]*\).*/\1/p' $$lock | $(BIN)/uv pip compile - --no-deps --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --no-annotate --quiet --output-file $$lock; done

.PHONY: ci
ci: ## what continuous integration runs
	@.ci/run

.PHONY: clean
clean: down ## stop the stack and delete its data
	rm -rf $(DATA_DIR)

.PHONY: setup
setup: java $(READY) $(JARS) ## virtual environment from the hashed lock file, and the jars

# pip takes uv from the lock file with its hash; uv is the quicker installer of the rest, pip the way out when it fails.
$(READY): requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "error: Python 3.11 is needed; got $$("$(PYTHON)" --version 2>&1 || true)." \
	    "install python3.11 with its venv module, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(VENV) (about 2 GB, once)"
	@"$(PYTHON)" -m venv $(VENV)
	@sed -n '/^uv==/,/^[^ ]/{/^uv==/p;/^ .*--hash/p;}' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock || true
	@if $(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements.lock \
	    && $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .; then :; else \
	  echo "uv could not install; trying pip"; \
	  $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .; fi
	@touch $@

$(JARS): $(wildcard infra/jars.*) | $(READY)
	@mkdir -p $(DATA_DIR)
	@$(BIN)/python -m infra.jars
	@touch $@

# A Java that is missing is said before two gigabytes are downloaded, not after.
.PHONY: java
java:
	@home="$${LOCKSTEP_JAVA_HOME:-$${JAVA_HOME:-}}"; java="$${home:+$$home/bin/}java"; \
	version="$$("$$java" -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p' || true)"; \
	if [ "$$version" != 17 ]; then \
	  echo "error: a Java 17 runtime is needed; \`$$java\` is $${version:+version }$${version:-missing}." \
	    "install one (Debian: apt-get install openjdk-17-jre-headless) or set LOCKSTEP_JAVA_HOME to its home" >&2; exit 2; fi

# Playwright drives an installed Chromium. Only root can install one; without it the browser test says that it is skipped.
.PHONY: chromium
chromium:
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; \
	then :; elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing Chromium for the browser test"; \
	  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install chromium; } \
	    >/dev/null || echo "Chromium could not be installed; the browser test will say so"; \
	else echo "no Chromium here; the browser test will be skipped"; fi
