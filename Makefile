# `make demo` and `make test` need only a fresh clone. The other targets are for development.
PYTHON ?= python3
# Each interpreter gets its own virtual environment, so that `make test PYTHON=python3.13` does not replace the default one.
VENV   := $(if $(filter python python3,$(notdir $(PYTHON))),.venv,.venv-$(notdir $(PYTHON)))
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PLUGINS := $(sort $(dir $(wildcard plugins/*/pyproject.toml)))
COVERAGE_FLOOR ?= 91

# Container images often set this variable. Each of the many test processes would then compile all sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint types docs bench bench-routing wan soak mutants coverage wheels changelog setup clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(STAMP) ## two nodes, a QUIC link, a service on one site called from the other (KEEP=1 keeps it running)
	@KEEP=$(KEEP) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python examples/demo.py

test: $(STAMP) lint types ## every check and every test (JOBS=n processes, PYTHON=python3.13 for another interpreter)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest --numprocesses $(or $(JOBS),4) --dist loadfile --no-loadscope-reorder

lint: $(STAMP) ## code style, import layers, spelling and prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python tools/check_prose.py

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

docs: $(STAMP) ## generate the pages of docs/reference
	$(BIN)/python docs/generate.py

bench: $(STAMP) ## benchmark of the whole path, compared with two leaf-linked nats-servers
	$(BIN)/python benchmarks/whole_path.py

bench-routing: $(STAMP) ## benchmark of the routing plane: update storms, convergence, tables
	$(BIN)/python benchmarks/routing.py
	$(BIN)/python benchmarks/routing_scale.py

wan: $(STAMP) ## four clouds of three real nodes in network namespaces, through faults (root; ONLY=partition,halves, QUICK=1, JSON=FILE)
	$(BIN)/python -m benchmarks.wan $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(JSON),--json $(JSON)) || test $$? -eq 77

soak: $(STAMP) ## random faults and churn in the lab for 1,000 seeds (SEEDS=n for another number, JOBS=n processes)
	$(BIN)/python tests/lab/soak.py --seeds $(or $(SEEDS),1000) --processes $(or $(JOBS),2)

mutants: $(STAMP) ## break each rule of routing, topology, links, calls and messages on purpose and show which test fails (JOBS=n)
	cd tools && $(abspath $(BIN))/python -m mutants --processes $(or $(JOBS),2)

coverage: $(STAMP) ## branch coverage of the tests, which must not fall below COVERAGE_FLOOR percent
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest --numprocesses $(or $(JOBS),4) --dist loadfile --cov --cov-branch --cov-report=term --cov-fail-under=$(COVERAGE_FLOOR)

wheels: $(STAMP) ## wheels and source distributions of core and all plugins in dist/, checked with twine
	rm -rf dist
	for project in . $(PLUGINS); do $(BIN)/python -m build --quiet --no-isolation --outdir dist $$project || exit 1; done
	$(BIN)/twine check --strict dist/*

changelog: $(STAMP) ## show the changelog entries of the next release, from changelog.d/
	$(BIN)/towncrier build --draft --version next

setup: $(STAMP) ## create the virtual environment, with core and all plugins installed

$(STAMP): pyproject.toml constraints.txt requirements-dev.txt $(wildcard plugins/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is required: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e . $(foreach plugin,$(PLUGINS),-e $(plugin))
	@touch $(STAMP)

clean: ## remove virtual environments, build results and caches
	rm -rf .venv .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
