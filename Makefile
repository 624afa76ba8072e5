# Two words do everything from a fresh clone: `make demo` and `make test`. The rest is for those who work on the code.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PLUGINS := $(sort $(dir $(wildcard plugins/*/pyproject.toml)))

# Where it is set (container images like to), each of the tests' many processes would compile all sources anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint types docs bench bench-routing soak mutants setup clean

help: ## show these words
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(STAMP) ## two nodes, a QUIC link, a service on one site called from the other (KEEP=1 stays up)
	@KEEP=$(KEEP) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python examples/demo.py

test: $(STAMP) lint types ## every check and every test (JOBS=n test processes, 4 by default)
	$(BIN)/python -m pytest --numprocesses $(or $(JOBS),4) --dist loadfile --no-loadscope-reorder

lint: $(STAMP) ## style, and the import contracts of the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

docs: $(STAMP) ## write the generated pages of docs/reference again
	$(BIN)/python docs/generate.py

bench: $(STAMP) ## the whole path against two leaf-linked nats-servers
	$(BIN)/python benchmarks/whole_path.py

bench-routing: $(STAMP) ## storms, convergence and tables in figures
	$(BIN)/python benchmarks/routing.py

soak: $(STAMP) ## 1,000 seeds of faults and churn in the lab (SEEDS=n for another number)
	$(BIN)/python tests/lab/soak.py --seeds $(or $(SEEDS),1000)

mutants: $(STAMP) ## break each rule of the routing engine, and see which test notices
	$(BIN)/python tests/routing/mutants.py

setup: $(STAMP) ## the virtual environment, with core and plugins in place

$(STAMP): pyproject.toml constraints.txt requirements-dev.txt $(wildcard plugins/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e . $(foreach plugin,$(PLUGINS),-e $(plugin))
	@touch $(STAMP)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
